/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An incremental dump holds only what has changed; the rest is found in the directory that its link "parent" names,
 * or in that one's parent, and so on. Each level has its own pagemaps, whose ranges overlap those above in any way.
 *
 * A pagemap is resolved with what it refers to: the same pagemap one level down, or (pages that fork shares) the
 * pagemap of another process on the same level. Each is resolved once and kept. All of it is hostile: a level that
 * comes again, references in a circle and pages that nobody has end the reading.
 */
#include "image/page_chain.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <uthash.h>

#include "base/fd.h"

#include "pagemap.pb-c.h"

enum {
	PAGE_BYTES = 4096,
	MAX_DEPTH = 4000, /* of references; each takes some of our stack */
};

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

struct page_source {
	size_t level;
	uint32_t pages_id;
	int fd; /* -1 = not open */
	bool is_store;
};

struct level {
	int dirfd;
	dev_t device;
	ino_t inode;
};

/* One pagemap image of one level, resolved. */
struct resolved {
	struct {
		uint64_t kind, level, id;
	} key;
	bool complete; /* false: it is being read, further up on the stack */
	struct page_places places;
	UT_hash_handle hh;
};

struct store {
	enum image_kind kind;
	uint64_t id;
	uint32_t source;
};

struct page_chain {
	struct failure *failure;
	struct level *levels; /* those that were needed; [0] is the images directory */
	size_t level_count, level_capacity;
	struct page_source *sources;
	size_t source_count, source_capacity;
	struct store *stores;
	size_t store_count, store_capacity;
	struct resolved *resolved;
	bool lazy_allowed;                             /* page_chain_allow_lazy() */
	uint32_t lazy_source;                          /* … and the source of such pages */
	int (*fetch)(void *context, const char *name); /* page_chain_set_fetch(); may be NULL */
	void *fetch_context;
};

/* ---- lists of places ---- */

void page_places_add(struct page_places *places, const struct page_place *place)
{
	struct page_place *last = places->count ? &places->items[places->count - 1] : NULL;

	if (last && last->address + last->pages * PAGE_BYTES == place->address && last->source == place->source &&
	    last->first_page + last->pages == place->first_page && last->huge == place->huge) {
		last->pages += place->pages;
		return;
	}
	places->has_huge |= place->huge;
	ARRAY_GROW(places->items, places->count, places->capacity);
	places->items[places->count++] = *place;
}

size_t page_places_find(const struct page_places *places, uint64_t address)
{
	size_t low = 0, high = places->count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (places->items[middle].address + places->items[middle].pages * PAGE_BYTES <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool page_places_part(const struct page_places *places, size_t *index, uint64_t start, uint64_t end,
		      struct page_place *ret_part)
{
	if (*index >= places->count || places->items[*index].address >= end)
		return false;
	*ret_part = places->items[(*index)++];
	if (ret_part->address < start) {
		uint64_t skip = (start - ret_part->address) / PAGE_BYTES;
		ret_part->address = start;
		ret_part->first_page += skip;
		ret_part->pages -= skip;
	}
	if (ret_part->pages > (end - ret_part->address) / PAGE_BYTES)
		ret_part->pages = (end - ret_part->address) / PAGE_BYTES;
	return true;
}

/* ---- levels ---- */

int images_parent_open(int dirfd, struct failure *failure, int *ret_dirfd)
{
	int fd = openat(dirfd, "parent", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat stat;

	if (fd >= 0) {
		*ret_dirfd = fd;
		return 0;
	}
	if (errno == ENOENT && fstatat(dirfd, "parent", &stat, AT_SYMLINK_NOFOLLOW) < 0)
		return -ENOENT;
	return fail_errno(failure, errno, "image-parent", "parent",
			  "copy the parent images too, or dump again without --prev-images-dir",
			  "the link of the images directory leads to no directory");
}

/* Opens the directory of @level; those before it are open. */
static int open_level(struct page_chain *chain, size_t level)
{
	_cleanup_fd_ int dirfd = -1;
	struct stat stat;

	if (level < chain->level_count)
		return 0;
	int error = images_parent_open(chain->levels[level - 1].dirfd, chain->failure, &dirfd);
	if (error == -ENOENT && !failure_is_set(chain->failure))
		return fail(chain->failure, ENOENT, "image-parent", "parent",
			    "copy the images directory with its links and with the parent images",
			    "some pages lie in parent images, but the images directory has no such link");
	if (error < 0)
		return error;
	if (fstat(dirfd, &stat) < 0)
		return fail_errno(chain->failure, errno, "image-parent", "parent", NULL, "cannot be read");
	for (size_t i = 0; i < chain->level_count; i++)
		if (chain->levels[i].device == stat.st_dev && chain->levels[i].inode == stat.st_ino)
			return fail(chain->failure, ELOOP, "image-parent", "parent", NULL,
				    "the images are their own parents: the link leads back to level %zu of the chain",
				    i);
	ARRAY_GROW(chain->levels, chain->level_count, chain->level_capacity);
	chain->levels[chain->level_count++] =
		(struct level){.dirfd = TAKE_FD(dirfd), .device = stat.st_dev, .inode = stat.st_ino};
	return 0;
}

/* ---- sources ---- */

static uint32_t add_source(struct page_chain *chain, struct page_source source)
{
	ARRAY_GROW(chain->sources, chain->source_count, chain->source_capacity);
	chain->sources[chain->source_count] = source;
	return chain->source_count++;
}

uint32_t page_chain_add_store(struct page_chain *chain, enum image_kind kind, uint64_t id, int fd)
{
	uint32_t source = add_source(chain, (struct page_source){.fd = fd, .is_store = true});

	ARRAY_GROW(chain->stores, chain->store_count, chain->store_capacity);
	chain->stores[chain->store_count++] = (struct store){kind, id, source};
	return source;
}

uint32_t page_chain_allow_lazy(struct page_chain *chain)
{
	if (!chain->lazy_allowed)
		chain->lazy_source = add_source(chain, (struct page_source){.fd = -1, .is_store = true});
	chain->lazy_allowed = true;
	return chain->lazy_source;
}

int64_t page_chain_find_store(const struct page_chain *chain, enum image_kind kind, uint64_t id)
{
	for (size_t i = 0; i < chain->store_count; i++)
		if (chain->stores[i].kind == kind && chain->stores[i].id == id)
			return chain->stores[i].source;
	return -1;
}

static int fetch(const struct page_chain *chain, size_t level, const char *name)
{
	return chain->fetch && !level ? chain->fetch(chain->fetch_context, name) : 0;
}

static int check_pages_file(struct page_chain *chain, size_t level, uint32_t pages_id, uint64_t pages)
{
	struct stat stat;
	char name[64];

	if (!pages)
		return 0;
	int error = fetch(chain, level, image_name(IMAGE_PAGES, pages_id, name, sizeof(name)));
	if (error < 0)
		return error;
	if (fstatat(chain->levels[level].dirfd, name, &stat, 0) < 0)
		return fail_errno(chain->failure, errno, "image-open", name, "copy the whole images directory",
				  "cannot open the image file");
	if ((uint64_t)stat.st_size / PAGE_BYTES < pages)
		return fail(chain->failure, EINVAL, "image-truncated", name, "copy the images again",
			    "it holds %lu pages, its pagemap names %lu", (uint64_t)stat.st_size / PAGE_BYTES, pages);
	return 0;
}

int page_chain_open(struct page_chain *chain, uint32_t source, int *ret_fd)
{
	struct page_source *entry = &chain->sources[source];
	char name[64];

	if (entry->fd < 0 && entry->is_store)
		return fail(chain->failure, EINVAL, "page-store", NULL, NULL, "memory that was received is not there");
	if (entry->fd < 0) {
		image_name(IMAGE_PAGES, entry->pages_id, name, sizeof(name));
		entry->fd = openat(chain->levels[entry->level].dirfd, name, O_RDONLY | O_CLOEXEC);
		if (entry->fd < 0)
			return fail_errno(chain->failure, errno, "image-open", name,
					  errno == EMFILE ? "raise the limit of open files (ulimit -n)" : NULL,
					  "cannot open the image file");
	}
	*ret_fd = entry->fd;
	return 0;
}

uint32_t page_chain_source_count(const struct page_chain *chain)
{
	return chain->source_count;
}

bool page_chain_is_parent(const struct page_chain *chain, uint32_t source)
{
	return chain->sources[source].level > 0;
}

int page_chain_reopen(const struct page_chain *chain, uint32_t source)
{
	const struct page_source *entry = &chain->sources[source];
	char name[64];

	image_name(IMAGE_PAGES, entry->pages_id, name, sizeof(name));
	int fd = openat(chain->levels[entry->level].dirfd, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

void page_chain_drop_fetched(const struct page_chain *chain, uint32_t source)
{
	const struct page_source *entry = &chain->sources[source];
	_cleanup_fd_ int fd = chain->fetch && !entry->is_store && !entry->level ? page_chain_reopen(chain, source) : -1;

	/* If that fails, memory is free a while later. */
	if (fd < 0 || ftruncate(fd, 0) < 0)
		return;
}

void page_chain_close_files(struct page_chain *chain)
{
	for (size_t i = 0; chain && i < chain->source_count; i++)
		if (!chain->sources[i].is_store) {
			close_fd_pointer(&chain->sources[i].fd);
			chain->sources[i].fd = -1;
		}
}

int page_chain_move_directories(struct page_chain *chain, int (*move)(void *context, int *fd), void *context)
{
	for (size_t i = 0; i < chain->level_count; i++) {
		int error = move(context, &chain->levels[i].dirfd);
		if (error < 0)
			return error;
	}
	return 0;
}

/* ---- pagemaps ---- */

/* Where a pagemap is being resolved. */
struct reading {
	struct page_chain *chain;
	struct resolved *target;
	enum image_kind kind;
	size_t level;
	uint64_t id;
	unsigned depth;
	int64_t store; /* source of all pages; -1 = they are in files */
	uint32_t source;
	uint64_t pages_in_file; /* that came before */
	uint64_t previous_end;
	uint64_t limit;
};

static int resolve(struct page_chain *chain, enum image_kind kind, size_t level, uint64_t id, uint64_t limit,
		   unsigned depth, const struct page_places **ret_places);

/* Shared memory may have been larger than it is now. */
static uint64_t end_of_space(enum image_kind kind)
{
	return kind == IMAGE_PAGEMAP ? ADDRESS_SPACE_END : INT64_MAX & ~(uint64_t)(PAGE_BYTES - 1);
}

static int bad(const struct reading *reading, const char *cause, uint64_t address, uint64_t pages)
{
	char name[64];

	return fail(reading->chain->failure, EINVAL, "image-range",
		    image_name(reading->kind, reading->id, name, sizeof(name)), "copy the images again, or dump again",
		    "the entry at %lx with %lu pages %s", address, pages, cause);
}

/* What @entry says are pages [@from …) of @other. */
static int copy_places(const struct reading *reading, const PagemapEntry *entry, uint64_t pages, uint64_t from,
		       const struct page_places *other, const char *missing)
{
	uint64_t address = entry->vaddr, end = from + pages * PAGE_BYTES;
	bool huge = entry->has_flags && entry->flags & PAGEMAP_HUGE;
	size_t index = page_places_find(other, from);
	struct page_place part;

	while (from < end && page_places_part(other, &index, from, end, &part)) {
		if (part.address != from)
			break;
		from += part.pages * PAGE_BYTES;
		part.address = address;
		part.huge = huge;
		address += part.pages * PAGE_BYTES;
		page_places_add(&reading->target->places, &part);
	}
	return from == end ? 0 : bad(reading, missing, entry->vaddr, pages);
}

static int add_from_parent(const struct reading *reading, const PagemapEntry *entry, uint64_t pages)
{
	const struct page_places *other;

	if (reading->store >= 0) {
		page_places_add(&reading->target->places, &(struct page_place){
								  .address = entry->vaddr,
								  .pages = pages,
								  .first_page = entry->vaddr / PAGE_BYTES,
								  .source = reading->store,
								  .huge = entry->flags & PAGEMAP_HUGE,
							  });
		return 0;
	}
	int error = resolve(reading->chain, reading->kind, reading->level + 1, reading->id, end_of_space(reading->kind),
			    reading->depth + 1, &other);
	if (error == -ENOENT && !failure_is_set(reading->chain->failure))
		return bad(reading, "is said to be in the parent images, which do not have this process or memory",
			   entry->vaddr, pages);
	if (error < 0)
		return error;
	return copy_places(reading, entry, pages, entry->vaddr, other,
			   "is said to be in the parent images, which do not have all of it");
}

static int add_shared(const struct reading *reading, const PagemapEntry *entry, uint64_t pages)
{
	const struct page_places *other;

	if (reading->kind != IMAGE_PAGEMAP || entry->source_vaddr % PAGE_BYTES ||
	    entry->source_vaddr >= ADDRESS_SPACE_END || pages > (ADDRESS_SPACE_END - entry->source_vaddr) / PAGE_BYTES)
		return bad(reading, "refers to pages out of range", entry->vaddr, pages);
	int error = resolve(reading->chain, IMAGE_PAGEMAP, reading->level, entry->source_pid, ADDRESS_SPACE_END,
			    reading->depth + 1, &other);
	if (error == -ENOENT && !failure_is_set(reading->chain->failure))
		return bad(reading, "refers to pages of a process that the images do not have", entry->vaddr, pages);
	if (error < 0)
		return error;
	return copy_places(reading, entry, pages, entry->source_vaddr, other,
			   "refers to pages that the other process does not have");
}

static void add_present(struct reading *reading, const PagemapEntry *entry, uint64_t pages)
{
	bool stored = reading->store >= 0;

	page_places_add(&reading->target->places,
			&(struct page_place){
				.address = entry->vaddr,
				.pages = pages,
				.first_page = stored ? entry->vaddr / PAGE_BYTES : reading->pages_in_file,
				.source = stored ? reading->store : reading->source,
				.huge = entry->has_flags && entry->flags & PAGEMAP_HUGE,
			});
	reading->pages_in_file += pages;
}

static int take_entry(struct reading *reading, const PagemapEntry *entry)
{
	uint64_t pages = entry->has_nr_pages ? entry->nr_pages : entry->compat_nr_pages;
	uint32_t flags = entry->has_flags                           ? entry->flags
			 : entry->has_in_parent && entry->in_parent ? PAGEMAP_IN_PARENT
								    : PAGEMAP_PRESENT;

	if (entry->vaddr % PAGE_BYTES || entry->vaddr < reading->previous_end || entry->vaddr > reading->limit ||
	    pages > (reading->limit - entry->vaddr) / PAGE_BYTES)
		return bad(reading, "is out of order or range", entry->vaddr, pages);
	reading->previous_end = entry->vaddr + pages * PAGE_BYTES;
	if (!pages)
		return 0;
	if (flags & (PAGEMAP_IN_PARENT | PAGEMAP_PRESENT))
		reading->target->places.own_pages += pages;
	if (flags & PAGEMAP_IN_PARENT)
		return add_from_parent(reading, entry, pages);
	if (flags & PAGEMAP_SHARED)
		return add_shared(reading, entry, pages);
	if (flags & PAGEMAP_PRESENT)
		add_present(reading, entry, pages);
	else if (flags & PAGEMAP_LAZY && reading->chain->lazy_allowed)
		page_places_add(&reading->target->places, &(struct page_place){
								  .address = entry->vaddr,
								  .pages = pages,
								  .first_page = entry->vaddr / PAGE_BYTES,
								  .source = reading->chain->lazy_source,
							  });
	else if (flags & PAGEMAP_LAZY)
		return bad(reading, "was left with the page server of a lazy dump", entry->vaddr, pages);
	return 0;
}

static int take_entries(struct reading *reading, struct image *image)
{
	ProtobufCMessage *message;
	int result = image_read(image, &message);
	char name[64];

	if (result < 0)
		return result;
	if (!result)
		return fail(reading->chain->failure, EINVAL, "image-truncated",
			    image_name(reading->kind, reading->id, name, sizeof(name)), "copy the images again",
			    "it is empty");
	uint32_t pages_id = ((const PagemapHead *)message)->pages_id;
	image_message_free(message);
	if (reading->store < 0)
		reading->source = add_source(reading->chain, (struct page_source){reading->level, pages_id, -1, false});
	while ((result = image_read(image, &message)) > 0) {
		result = take_entry(reading, (const PagemapEntry *)message);
		image_message_free(message);
		if (result < 0)
			return result;
	}
	if (result < 0 || reading->store >= 0)
		return result;
	return check_pages_file(reading->chain, reading->level, pages_id, reading->pages_in_file);
}

static struct resolved *find_resolved(struct page_chain *chain, enum image_kind kind, size_t level, uint64_t id)
{
	struct resolved *found, key = {.key = {kind, level, id}};

	HASH_FIND(hh, chain->resolved, &key.key, sizeof(key.key), found);
	return found;
}

static struct resolved *add_resolved(struct page_chain *chain, enum image_kind kind, size_t level, uint64_t id)
{
	struct resolved *added = xcalloc(1, sizeof(*added));

	added->key.kind = kind;
	added->key.level = level;
	added->key.id = id;
	HASH_ADD(hh, chain->resolved, key, sizeof(added->key), added);
	return added;
}

static int read_pagemap(struct reading *reading)
{
	struct page_chain *chain = reading->chain;
	struct image *image;
	char name[64];
	int error = fetch(chain, reading->level, image_name(reading->kind, reading->id, name, sizeof(name)));

	if (!error)
		error = image_open(chain->levels[reading->level].dirfd, chain->failure, reading->kind, reading->id,
				   &image);
	if (error < 0)
		return error;
	reading->target = add_resolved(chain, reading->kind, reading->level, reading->id);
	error = take_entries(reading, image);
	image_close(&image);
	if (!error)
		reading->target->complete = true;
	return error;
}

/* The level that is at fault is said once. */
static int fail_in_level(struct failure *failure, size_t level)
{
	static const char name[] = "parent images";

	return strncmp(failure->object, name, strlen(name)) ? fail_in(failure, "%s %zu", name, level) : -failure->error;
}

static int resolve(struct page_chain *chain, enum image_kind kind, size_t level, uint64_t id, uint64_t limit,
		   unsigned depth, const struct page_places **ret_places)
{
	struct resolved *known = find_resolved(chain, kind, level, id);
	struct reading reading = {
		.chain = chain,
		.kind = kind,
		.level = level,
		.id = id,
		.depth = depth,
		.limit = limit,
		.store = level ? -1 : page_chain_find_store(chain, kind, id),
	};

	if (known && !known->complete)
		return bad(&reading, "belongs to references in a circle", 0, 0);
	if (!known) {
		if (depth > MAX_DEPTH)
			return fail(chain->failure, ELOOP, "image-parent", "parent", "dump again in full",
				    "the chain of images is longer than %d", MAX_DEPTH);
		int error = open_level(chain, level);
		if (!error)
			error = read_pagemap(&reading);
		if (error == -ENOENT && !failure_is_set(chain->failure))
			return error;
		if (error < 0)
			return level ? fail_in_level(chain->failure, level) : error;
		known = reading.target;
	}
	*ret_places = &known->places;
	return 0;
}

int page_chain_read(struct page_chain *chain, enum image_kind kind, uint64_t id, uint64_t limit,
		    const struct page_places **ret_places)
{
	uint64_t end = end_of_space(kind);

	return resolve(chain, kind, 0, id, limit < end ? limit : end, 0, ret_places);
}

struct page_chain *page_chain_new(int images_dirfd, struct failure *failure)
{
	struct page_chain *chain = xcalloc(1, sizeof(*chain));
	struct stat stat = {};
	int dirfd = fcntl(images_dirfd, F_DUPFD_CLOEXEC, 3);

	fstat(images_dirfd, &stat);
	chain->failure = failure;
	ARRAY_GROW(chain->levels, chain->level_count, chain->level_capacity);
	chain->levels[chain->level_count++] =
		(struct level){.dirfd = dirfd, .device = stat.st_dev, .inode = stat.st_ino};
	return chain;
}

void page_chain_set_fetch(struct page_chain *chain, int (*fetch_file)(void *context, const char *name), void *context)
{
	chain->fetch = fetch_file;
	chain->fetch_context = context;
}

void page_chain_free(struct page_chain *chain)
{
	struct resolved *item, *next;

	if (!chain)
		return;
	page_chain_close_files(chain);
	HASH_ITER (hh, chain->resolved, item, next) {
		HASH_DEL(chain->resolved, item);
		free(item->places.items);
		free(item);
	}
	for (size_t i = 0; i < chain->level_count; i++)
		close_fd_pointer(&chain->levels[i].dirfd);
	free(chain->levels);
	free(chain->sources);
	free(chain->stores);
	free(chain);
}
