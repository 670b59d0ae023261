/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/arriving_addresses.h"

#include <errno.h>

#include "base/fd.h"
#include "migrate/journal.h"

int arriving_addresses_parse(struct arriving_addresses *addresses, char *const *texts, size_t count,
			     struct failure *failure)
{
	int error = 0;

	if (count > MAX_ARRIVING_ADDRESSES)
		return fail(failure, E2BIG, "address", NULL, NULL, "more than %d addresses are to move",
			    MAX_ARRIVING_ADDRESSES);
	for (size_t i = 0; i < count && !error; i++)
		error = address_parse(failure, texts[i], &addresses->items[i]);
	addresses->count = error ? 0 : count;
	return error;
}

/* One that was here before must stay, whatever becomes of the tree. */
int arriving_addresses_find(struct arriving_addresses *addresses, struct failure *failure, struct journal *journal)
{
	struct moving_address new[MAX_ARRIVING_ADDRESSES];
	size_t count = 0;

	for (size_t i = 0; i < addresses->count; i++) {
		bool interface, has;
		uint8_t prefix_length;
		int error = address_look_up(failure, &addresses->items[i], &interface, &has, &prefix_length);
		if (error < 0)
			return error;
		addresses->is_new[i] = !has;
		if (!has)
			new[count++] = addresses->items[i];
	}
	journal_set_addresses(journal, new, count);
	return 0;
}

/* First silence, then the address, then sockets: nobody is ever answered by a reset. */
int arriving_addresses_take(struct arriving_addresses *addresses, struct failure *failure)
{
	int error = 0;

	for (size_t i = 0; i < addresses->count && !error; i++) {
		error = address_block(failure, &addresses->items[i], &addresses->blocks[i]);
		if (!error && addresses->is_new[i])
			error = address_add(failure, &addresses->items[i]);
	}
	return error;
}

int arriving_addresses_open(struct arriving_addresses *addresses, struct failure *failure)
{
	int error = 0;

	for (size_t i = 0; i < addresses->count; i++) {
		struct failure one = {};
		address_unblock(TAKE_POINTER(addresses->blocks[i]));
		if (address_announce(&one, &addresses->items[i]) < 0) {
			*failure = one;
			error = -one.error;
		}
	}
	return error;
}

void arriving_addresses_give_back(struct arriving_addresses *addresses)
{
	struct failure ignored = {};

	for (size_t i = 0; i < addresses->count; i++) {
		if (addresses->is_new[i])
			address_remove(&ignored, &addresses->items[i]);
		address_unblock(TAKE_POINTER(addresses->blocks[i]));
	}
}
