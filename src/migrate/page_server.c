/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages are written as they come, one file for each space; pagemaps are kept in memory and written when the other side
 * says that it is done. So a link that is cut, or a peer that sends nonsense, leaves nothing that a restore would take.
 *
 * The other side is hostile: what a request says is checked before a byte is read for it, and it can at worst fill the
 * disk with pages, which a dump does too.
 */
#include "migrate/page_server.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/log.h"
#include "image/image.h"
#include "image/page_chain.h"
#include "migrate/page_protocol.h"
#include "migrate/stream.h"

#include "pagemap.pb-c.h"

enum {
	PAGE_BYTES = 4096,
	BUFFER_BYTES = 256 * 1024,
	MAX_SPACES = 1 << 20,
	MAX_ENTRIES = 1 << 25, /* of all spaces: two hundred times what a terabyte of 4 MiB runs has */
};

#define KNOWN_FLAGS (PAGEMAP_IN_PARENT | PAGEMAP_LAZY | PAGEMAP_PRESENT)

struct entry {
	uint64_t address, pages;
	uint32_t flags;
};

struct space {
	enum page_space kind;
	uint32_t id, pages_id;
	uint64_t end; /* of the last entry: they ascend */
	uint64_t file_bytes;
	struct entry *entries;
	size_t count, capacity;
};

struct server {
	struct stream *stream;
	struct failure *failure;
	int dirfd, parent_fd;
	struct space *spaces;
	size_t count, capacity;
	size_t entry_count;
	size_t written; /* spaces whose pagemap file was made */
	int pages_fd;   /* of the last space, the only one that is open */
	char *buffer;
};

static int bad(struct server *server, const char *cause, uint64_t number)
{
	return fail(server->failure, EPROTO, "page-protocol", stream_peer(server->stream),
		    "is it a criu of this or another release at all?", "%s (0x%llx)", cause,
		    (unsigned long long)number);
}

static enum image_kind pagemap_kind(enum page_space space)
{
	return space == PAGE_SPACE_SHMEM ? IMAGE_SHMEM_PAGEMAP : IMAGE_PAGEMAP;
}

static int stream_failed(struct server *server, int error)
{
	return stream_fail(server->stream, error, server->failure);
}

/* ---- spaces ---- */

static struct space *find_space(struct server *server, enum page_space kind, uint32_t id)
{
	for (size_t i = server->count; i-- > 0;)
		if (server->spaces[i].kind == kind && server->spaces[i].id == id)
			return &server->spaces[i];
	return NULL;
}

static bool parent_has(const struct server *server, enum page_space kind, uint32_t id)
{
	char name[64];

	return server->parent_fd >= 0 &&
	       !faccessat(server->parent_fd, image_name(pagemap_kind(kind), id, name, sizeof(name)), F_OK, 0);
}

/* The size may end in holes, where pages of zeros came. */
static int finish_pages(struct server *server)
{
	const struct space *space = server->count ? &server->spaces[server->count - 1] : NULL;
	int fd = TAKE_FD(server->pages_fd);

	if (fd < 0)
		return 0;
	int error = ftruncate(fd, space->file_bytes) < 0 ? -errno : 0;
	if (close(fd) < 0 && !error)
		error = -errno;
	return error ? fail_errno(server->failure, error, "image-write", "pages image", NULL, "cannot finish it") : 0;
}

static int open_pages(struct server *server, uint32_t pages_id)
{
	char name[64];

	image_name(IMAGE_PAGES, pages_id, name, sizeof(name));
	server->pages_fd = openat(server->dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (server->pages_fd < 0)
		return fail_errno(server->failure, errno, "image-create", name, NULL, "cannot create the image file");
	return 0;
}

static int open_space(struct server *server, const struct page_request *request, bool answer)
{
	enum page_space kind;
	uint32_t id;

	if (page_destination_parse(request->destination, &kind, &id) < 0)
		return bad(server, "it opens a destination that cannot be", request->destination);
	if (find_space(server, kind, id))
		return bad(server, "it opens a destination twice", request->destination);
	if (server->count == MAX_SPACES)
		return bad(server, "it opens too many destinations", server->count);
	int error = finish_pages(server);
	if (!error) {
		ARRAY_GROW(server->spaces, server->count, server->capacity);
		server->spaces[server->count] =
			(struct space){.kind = kind, .id = id, .pages_id = (uint32_t)server->count + 1};
		server->count++;
		error = open_pages(server, (uint32_t)server->count);
	}
	if (error || !answer)
		return error;
	uint8_t has_parent = parent_has(server, kind, id);
	error = stream_write_full(server->stream, &has_parent, sizeof(has_parent));
	return error ? stream_failed(server, error) : 0;
}

static int answer_parent(struct server *server, const struct page_request *request)
{
	enum page_space kind;
	uint32_t id;

	if (page_destination_parse(request->destination, &kind, &id) < 0)
		return bad(server, "it asks for a destination that cannot be", request->destination);
	int32_t status = parent_has(server, kind, id) ? 0 : -ENOENT;
	int error = stream_write_full(server->stream, &status, sizeof(status));
	return error ? stream_failed(server, error) : 0;
}

/* ---- pages ---- */

static bool is_zero_page(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE_BYTES - 1);
}

static int write_pages(struct server *server, struct space *space, size_t bytes)
{
	for (size_t at = 0, end; at < bytes; at = end + PAGE_BYTES) {
		for (end = at; end < bytes && !is_zero_page(server->buffer + end); end += PAGE_BYTES)
			;
		int error =
			end > at ? pwrite_full(server->pages_fd, server->buffer + at, end - at, space->file_bytes + at)
				 : 0;
		if (error < 0)
			return fail_errno(server->failure, error, "image-write", "pages image",
					  error == -ENOSPC ? "free space, or choose another --images-dir" : NULL,
					  "cannot write memory pages");
	}
	space->file_bytes += bytes;
	return 0;
}

static int receive_pages(struct server *server, struct space *space, uint64_t pages)
{
	int error = 0;

	for (uint64_t left = pages * PAGE_BYTES; left && !error;) {
		size_t bytes = left < BUFFER_BYTES ? left : BUFFER_BYTES;
		error = stream_read_full(server->stream, server->buffer, bytes);
		error = error ? stream_failed(server, error) : write_pages(server, space, bytes);
		left -= bytes;
	}
	return error;
}

static void keep_entry(struct server *server, struct space *space, const struct entry *entry)
{
	struct entry *last = space->count ? &space->entries[space->count - 1] : NULL;

	if (last && last->flags == entry->flags && last->address + last->pages * PAGE_BYTES == entry->address) {
		last->pages += entry->pages;
		return;
	}
	ARRAY_GROW(space->entries, space->count, space->capacity);
	space->entries[space->count++] = *entry;
	server->entry_count++;
}

static int add(struct server *server, const struct page_request *request, uint32_t flags)
{
	struct space *space = server->count ? &server->spaces[server->count - 1] : NULL;

	if (!space || page_destination(space->kind, space->id) != request->destination)
		return bad(server, "it sends pages for a destination that is not open", request->destination);
	if (page_request_check_range(request, space->kind) < 0 || request->address < space->end)
		return bad(server, "it sends pages out of order or range", request->address);
	if (!flags || flags & ~KNOWN_FLAGS || (flags & PAGEMAP_IN_PARENT && flags & PAGEMAP_PRESENT))
		return bad(server, "it sends pages with flags that cannot be", flags);
	if (flags & PAGEMAP_IN_PARENT && server->parent_fd < 0)
		return fail(server->failure, EPROTO, "page-parent", stream_peer(server->stream),
			    "give --prev-images-dir to this page server too",
			    "its dump leaves pages in parent images, and there are none here");
	if (server->entry_count >= MAX_ENTRIES)
		return bad(server, "it sends too many entries", server->entry_count);
	keep_entry(server, space, &(struct entry){request->address, request->pages, flags});
	space->end = request->address + request->pages * PAGE_BYTES;
	return flags & PAGEMAP_PRESENT ? receive_pages(server, space, request->pages) : 0;
}

/* ---- the end ---- */

static int write_pagemap(struct server *server, const struct space *space)
{
	PagemapHead head = PAGEMAP_HEAD__INIT;
	struct image *image;
	int error = image_create(server->dirfd, server->failure, pagemap_kind(space->kind), space->id, &image);

	if (error < 0)
		return error;
	head.pages_id = space->pages_id;
	image_write(image, &head.base);
	for (size_t i = 0; i < space->count; i++) {
		PagemapEntry entry = PAGEMAP_ENTRY__INIT;
		entry.vaddr = space->entries[i].address;
		entry.has_nr_pages = entry.has_flags = true;
		entry.nr_pages = space->entries[i].pages;
		entry.flags = space->entries[i].flags;
		image_write(image, &entry.base);
	}
	return image_close(&image);
}

static int finish(struct server *server)
{
	int32_t status = 0;
	int error = finish_pages(server);

	while (!error && server->written < server->count)
		error = write_pagemap(server, &server->spaces[server->written++]);
	if (error)
		status = -1;
	int sent = stream_write_full(server->stream, &status, sizeof(status));
	return error ? error : sent ? stream_failed(server, sent) : 0;
}

static void remove_all(struct server *server)
{
	char name[64];

	close_fd_pointer(&server->pages_fd);
	for (size_t i = 0; i < server->count; i++) {
		const struct space *space = &server->spaces[i];
		if (i < server->written)
			unlinkat(server->dirfd, image_name(pagemap_kind(space->kind), space->id, name, sizeof(name)),
				 0);
		unlinkat(server->dirfd, image_name(IMAGE_PAGES, space->pages_id, name, sizeof(name)), 0);
	}
}

/* Returns 1 when the other side is done, 0 to go on, or a failure. */
static int serve_request(struct server *server, const struct page_request *request)
{
	switch (request->command) {
	case PAGE_COMMAND_OPEN:
	case PAGE_COMMAND_OPEN_ANSWER:
		return open_space(server, request, request->command == PAGE_COMMAND_OPEN_ANSWER);
	case PAGE_COMMAND_ADD:
		return add(server, request, PAGEMAP_PRESENT);
	case PAGE_COMMAND_HOLE:
		return add(server, request, PAGEMAP_IN_PARENT);
	case PAGE_COMMAND_ADD_FLAGS:
		return add(server, request, request->flags);
	case PAGE_COMMAND_PARENT:
		return answer_parent(server, request);
	case PAGE_COMMAND_CLOSE:
	case PAGE_COMMAND_FORCE_CLOSE:
		return finish(server) ?: 1;
	case PAGE_COMMAND_GET:
		return bad(server, "it wants pages, but this server only takes them", request->command);
	default:
		return bad(server, "it sends a command that does not exist", request->command);
	}
}

static int serve(struct server *server)
{
	struct page_request request;
	int error = images_parent_open(server->dirfd, server->failure, &server->parent_fd);

	if (error < 0 && failure_is_set(server->failure))
		return error;
	for (error = 0; !error;) {
		error = page_request_receive(server->stream, &request);
		error = error ? stream_failed(server, error) : serve_request(server, &request);
	}
	return error > 0 ? 0 : error;
}

int page_server_run(struct stream *stream, int images_dirfd, struct failure *failure)
{
	struct server server = {
		.stream = stream,
		.failure = failure,
		.dirfd = images_dirfd,
		.parent_fd = -1,
		.pages_fd = -1,
		.buffer = xcalloc(1, BUFFER_BYTES),
	};
	int error = serve(&server);

	if (error)
		remove_all(&server);
	else
		log_info("took %zu address spaces", server.count);
	close_fd_pointer(&server.parent_fd);
	for (size_t i = 0; i < server.count; i++)
		free(server.spaces[i].entries);
	free(server.spaces);
	free(server.buffer);
	return error;
}
