/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An address that moves with the tree, so that its connections stay open (`criu migrate --address 10.0.0.5/24@eth0`).
 *
 * The order keeps every reset away: the destination drops all packets of the address, then adds it, then restores the
 * sockets; the source removes it before it lets the destination go on; the destination lets packets pass, and tells the
 * neighbours where the address lives now.
 */
#pragma once

#include <net/if.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/fail.h"

enum { ADDRESS_BYTES = 16, ADDRESS_TEXT_BYTES = 96 };

struct moving_address {
	int family;                     /* AF_INET or AF_INET6 */
	uint8_t address[ADDRESS_BYTES]; /* network byte order; IPv4 uses four */
	uint8_t prefix_length;
	char interface[IF_NAMESIZE];
};

struct address_block; /* all packets of an address, dropped */

/* Reads "ADDRESS/PREFIX@INTERFACE". Returns 0 or a failure. */
int address_parse(struct failure *failure, const char *text, struct moving_address *ret_address);
/* The same text again into @buffer of ADDRESS_TEXT_BYTES. Returns @buffer. */
char *address_text(const struct moving_address *address, char *buffer);
/*
 * Whether the interface exists and has the address. @ret_prefix_length: the one it has it with, if it has.
 * Returns 0 or a failure.
 */
int address_look_up(struct failure *failure, const struct moving_address *address, bool *ret_interface, bool *ret_has,
		    uint8_t *ret_prefix_length);
/*
 * Checks that this machine has all of them, with these prefix lengths, and that none is given twice. Returns 0 or a
 * failure.
 */
int addresses_check(struct failure *failure, const struct moving_address *addresses, size_t count);
/* Adds the address, usable at once (no duplicate detection). Returns 0, also if it is there already, or a failure. */
int address_add(struct failure *failure, const struct moving_address *address);
/* Removes it. Returns 0, also if it is not there, or a failure. */
int address_remove(struct failure *failure, const struct moving_address *address);
/* Tells the neighbours: gratuitous ARP, or an unsolicited neighbour advertisement. Returns 0 or a failure. */
int address_announce(struct failure *failure, const struct moving_address *address);

/* Drops all packets from and to the address until address_unblock(), or until this process ends. Returns 0 or a
 * failure. */
int address_block(struct failure *failure, const struct moving_address *address, struct address_block **ret_block);
/* Lets them pass and frees it; nothing happens to NULL. */
void address_unblock(struct address_block *block);
