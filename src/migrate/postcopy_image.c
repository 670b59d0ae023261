/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/postcopy_image.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fd.h"
#include "model/lazy_memory.h"

enum { PAGE_BYTES = 4096 };

static const uint8_t all_asked[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

static size_t bit_bytes(const struct postcopy_image *image)
{
	return image->total / 8 + 1;
}

struct postcopy_image *postcopy_image_new(uint32_t id, const struct page_places *places, int state_fd)
{
	struct postcopy_image *image = xcalloc(1, sizeof(*image));

	*image = (struct postcopy_image){
		.id = id, .places = places, .first = xcalloc(places->count + 1, sizeof(uint64_t))};
	for (size_t i = 0; i < places->count; i++) {
		image->first[i] = image->total;
		image->total += places->items[i].pages;
	}
	image->asked = xcalloc(bit_bytes(image), 1);
	image->arrived = state_fd < 0 ? NULL : lazy_state_bits(state_fd, bit_bytes(image));
	if (image->arrived)
		memcpy(image->asked, image->arrived, bit_bytes(image));
	return image;
}

void postcopy_image_free(struct postcopy_image *image)
{
	if (image->arrived)
		munmap(image->arrived, bit_bytes(image));
	free(image->first);
	free(image->asked);
	free(image);
}

uint64_t postcopy_image_number(const struct postcopy_image *image, uint64_t address, uint64_t *ret_pages_left)
{
	size_t index = page_places_find(image->places, address);
	const struct page_place *place = &image->places->items[index];

	if (index >= image->places->count || place->address > address)
		return POSTCOPY_NO_PAGE;
	*ret_pages_left = place->pages - (address - place->address) / PAGE_BYTES;
	return image->first[index] + (address - place->address) / PAGE_BYTES;
}

uint64_t postcopy_image_address(const struct postcopy_image *image, uint64_t number)
{
	size_t low = 0, high = image->places->count;

	while (high - low > 1) {
		size_t middle = (low + high) / 2;
		if (image->first[middle] <= number)
			low = middle;
		else
			high = middle;
	}
	return image->places->items[low].address + (number - image->first[low]) * PAGE_BYTES;
}

/* ---- bits ---- */

bool postcopy_image_is_asked(const struct postcopy_image *image, uint64_t number)
{
	return image->asked[number / 8] >> (number % 8) & 1;
}

static void set_bits(uint8_t *bits, uint64_t from, uint64_t count, bool value)
{
	for (uint64_t i = from; i < from + count; i++) {
		uint8_t bit = (uint8_t)(1U << (i % 8));

		bits[i / 8] = value ? bits[i / 8] | bit : bits[i / 8] & ~bit;
	}
}

void postcopy_image_set_asked(struct postcopy_image *image, uint64_t number, uint64_t pages, bool asked)
{
	set_bits(image->asked, number, pages, asked);
}

void postcopy_image_set_arrived(struct postcopy_image *image, uint64_t number, uint64_t pages)
{
	if (image->arrived)
		set_bits(image->arrived, number, pages, true);
}

/* The first page from @from up to @end that nobody has asked for, or @end. */
static uint64_t find_unasked(const struct postcopy_image *image, uint64_t from, uint64_t end)
{
	while (from < end) {
		unsigned rest = (uint8_t)~image->asked[from / 8] >> (from % 8);
		if (rest) {
			from += (uint64_t)__builtin_ctz(rest);
			return from < end ? from : end;
		}
		from = (from / 8 + 1) * 8;
		/* Most of a large image, when little is left of it. */
		while (from + 64 <= end && !memcmp(image->asked + from / 8, all_asked, sizeof(all_asked)))
			from += 64;
	}
	return end;
}

uint64_t postcopy_image_next(const struct postcopy_image *image)
{
	uint64_t page = find_unasked(image, image->cursor, image->total);

	if (page < image->total)
		return page;
	page = find_unasked(image, 0, image->cursor);
	return page < image->cursor ? page : image->total;
}
