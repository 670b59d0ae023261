/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_stores.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "migrate/frames.h"

/* A peer that names ever new spaces must not take all descriptors. */
enum { MAX_STORES = 8192, MAX_IDLE_BUFFERS = 32 };

/* Pages lie at their address, and files end before the sign bit. */
#define MAX_OFFSET (UINT64_C(1) << 56)

struct page_stores {
	pthread_mutex_t lock;
	struct page_store *items;
	size_t count, capacity;
	void *idle[MAX_IDLE_BUFFERS];
	size_t idle_count;
};

int page_stores_new(struct failure *failure, struct page_stores **ret_stores)
{
	struct page_stores *stores = xcalloc(1, sizeof(*stores));
	int error = pthread_mutex_init(&stores->lock, NULL);

	if (error) {
		free(stores);
		return fail_errno(failure, error, "page-stores", NULL, NULL, "cannot make a lock");
	}
	*ret_stores = stores;
	return 0;
}

void page_stores_free(struct page_stores *stores)
{
	if (!stores)
		return;
	for (size_t i = 0; i < stores->count; i++)
		close(stores->items[i].fd);
	for (size_t i = 0; i < stores->idle_count; i++)
		free(stores->idle[i]);
	pthread_mutex_destroy(&stores->lock);
	free(stores->items);
	free(stores);
}

int page_stores_buffer(struct page_stores *stores, struct failure *failure, void **ret_buffer)
{
	void *buffer = NULL;

	pthread_mutex_lock(&stores->lock);
	if (stores->idle_count)
		buffer = stores->idle[--stores->idle_count];
	pthread_mutex_unlock(&stores->lock);
	if (!buffer)
		buffer = aligned_alloc(FRAME_PAGE_BYTES, FRAME_MAX_BYTES);
	if (!buffer)
		return fail(failure, ENOMEM, "out-of-memory", NULL, NULL, "no memory for received pages");
	*ret_buffer = buffer;
	return 0;
}

void page_stores_return(struct page_stores *stores, void *buffer)
{
	pthread_mutex_lock(&stores->lock);
	if (stores->idle_count < MAX_IDLE_BUFFERS) {
		stores->idle[stores->idle_count++] = buffer;
		buffer = NULL;
	}
	pthread_mutex_unlock(&stores->lock);
	free(buffer);
}

static int find_or_make(struct page_stores *stores, uint32_t space_kind, uint32_t space_id)
{
	for (size_t i = 0; i < stores->count; i++)
		if (stores->items[i].space == space_kind && stores->items[i].id == space_id)
			return stores->items[i].fd;
	if (stores->count == MAX_STORES)
		return -EMFILE;
	int fd = memfd_create("criu-pages", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* Pages of zeros are holes, also behind the last page that was written. */
	if (ftruncate(fd, MAX_OFFSET) < 0) {
		int error = -errno;
		close(fd);
		return error;
	}
	ARRAY_GROW(stores->items, stores->count, stores->capacity);
	stores->items[stores->count++] = (struct page_store){.space = space_kind, .id = space_id, .fd = fd};
	return fd;
}

static int store_fd(struct page_stores *stores, uint32_t space_kind, uint32_t space_id, uint64_t address,
		    uint64_t bytes, struct failure *failure)
{
	if (address > MAX_OFFSET || bytes > MAX_OFFSET - address)
		return fail(failure, EPROTO, "page-address", NULL, NULL, "pages at %lx are outside of any memory",
			    address);
	pthread_mutex_lock(&stores->lock);
	int fd = find_or_make(stores, space_kind, space_id);
	pthread_mutex_unlock(&stores->lock);
	return fd < 0 ? fail_errno(failure, fd, "page-store", NULL, NULL, "cannot make a store for memory %u", space_id)
		      : fd;
}

int page_stores_write(struct page_stores *stores, uint32_t space_kind, uint32_t space_id, uint64_t address,
		      uint64_t bytes, const void *data, struct failure *failure)
{
	int fd = store_fd(stores, space_kind, space_id, address, bytes, failure);
	int error = fd < 0 ? fd : pwrite_full(fd, data, bytes, address);

	return error < 0 ? fail_errno(failure, error, "page-store", NULL, "free memory on this machine",
				      "cannot keep received pages")
			 : 0;
}

int page_stores_drop(struct page_stores *stores, uint32_t space_kind, uint32_t space_id, uint64_t address,
		     uint64_t bytes, const void *data, struct failure *failure)
{
	int fd = store_fd(stores, space_kind, space_id, address, bytes, failure);

	if (fd < 0)
		return fd;
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, address, bytes) < 0)
		return fail_errno(failure, errno, "page-store", NULL, NULL, "cannot drop received pages");
	return 0;
}

bool page_stores_has_data(struct page_stores *stores, uint32_t space_kind, uint32_t space_id, uint64_t start,
			  uint64_t end)
{
	bool found = false;

	pthread_mutex_lock(&stores->lock);
	for (size_t i = 0; i < stores->count; i++)
		if (stores->items[i].space == space_kind && stores->items[i].id == space_id) {
			off_t data = lseek(stores->items[i].fd, start, SEEK_DATA);
			found = data >= 0 && (uint64_t)data < end;
		}
	pthread_mutex_unlock(&stores->lock);
	return found;
}

const struct page_store *page_stores_list(const struct page_stores *stores, size_t *ret_count)
{
	*ret_count = stores->count;
	return stores->items;
}
