/* SPDX-License-Identifier: Apache-2.0 */
/* At the destination: the addresses that come with a tree (--address). */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/fail.h"
#include "migrate/address.h"

struct journal;

enum { MAX_ARRIVING_ADDRESSES = 16 };

struct arriving_addresses {
	struct moving_address items[MAX_ARRIVING_ADDRESSES];
	struct address_block *blocks[MAX_ARRIVING_ADDRESSES];
	bool is_new[MAX_ARRIVING_ADDRESSES]; /* was not here before */
	size_t count;
};

/* What the source says; replaces what it said before. Returns 0 or a failure. */
int arriving_addresses_parse(struct arriving_addresses *addresses, char *const *texts, size_t count,
			     struct failure *failure);
/* Which of them this machine does not have yet; they are noted in @journal, to be written. Returns 0 or a failure. */
int arriving_addresses_find(struct arriving_addresses *addresses, struct failure *failure, struct journal *journal);
/* Gives them to this machine, each in silence. Returns 0 or a failure. */
int arriving_addresses_take(struct arriving_addresses *addresses, struct failure *failure);
/* The tree is about to run: it may be heard, and the neighbours are told. Returns 0 or the last failure. */
int arriving_addresses_open(struct arriving_addresses *addresses, struct failure *failure);
/* When nothing of the tree is left: the last sockets have closed in silence. */
void arriving_addresses_give_back(struct arriving_addresses *addresses);
