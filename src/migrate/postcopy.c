/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel gives: a fault is a message on the userfaultfd, and UFFDIO_COPY puts pages in place and wakes who
 * waits. What it makes hard: the task goes on changing its memory. Fork, mremap, madvise and munmap of a registered
 * range are messages too, and the call waits until the message is read; UFFDIO_COPY says EAGAIN while one is on its
 * way, so messages are read before the copy is tried again. EEXIST means that the page is there already (a second
 * request, or a daemon before us): it is never replaced.
 *
 * Each message is noted in the space's memfd as soon as it is read. A daemon that is killed between the two loses it:
 * that is the known hole, some microseconds wide.
 */
#include "migrate/postcopy.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "migrate/lazy_guard.h"
#include "migrate/postcopy_image.h"
#include "model/lazy_memory.h"

enum {
	PAGE_BYTES = 4096,
	FAULT_PAGES = 8,
	CHUNK_PAGES = 64,
	PAUSE_NS = 50000,
};

struct space {
	uint32_t number, image_id;
	int userfault_fd, state_fd;
	bool ended;
	uint64_t nowhere; /* the page that the last try found no mapping for */
	struct lazy_ranges ranges;
};

struct flight {
	uint32_t id;
	uint64_t address, pages;
};

struct postcopy {
	struct page_supply *supply;
	struct failure *failure;
	int work_dirfd, guard_fd;
	uint32_t last_number;
	struct space **spaces;
	size_t space_count, space_capacity;
	struct postcopy_image **images;
	size_t image_count, image_capacity;
	struct flight *flights;
	size_t flight_count, flight_capacity;
};

/* ---- images ---- */

static struct postcopy_image *find_image(const struct postcopy *postcopy, uint32_t id)
{
	for (size_t i = 0; i < postcopy->image_count; i++)
		if (postcopy->images[i]->id == id)
			return postcopy->images[i];
	return NULL;
}

/* @state_fd: of a space that wants its pages. */
static int add_image(struct postcopy *postcopy, uint32_t id, int state_fd)
{
	const struct page_places *places;

	if (find_image(postcopy, id))
		return 0;
	int error = postcopy->supply->ops->places(postcopy->supply, postcopy->failure, id, &places);
	if (error < 0)
		return error;
	ARRAY_GROW(postcopy->images, postcopy->image_count, postcopy->image_capacity);
	postcopy->images[postcopy->image_count++] = postcopy_image_new(id, places, state_fd);
	return 0;
}

/* ---- ranges ---- */

static void add_range(struct lazy_ranges *ranges, struct lazy_range range)
{
	if (!range.bytes)
		return;
	ARRAY_GROW(ranges->items, ranges->count, ranges->capacity);
	ranges->items[ranges->count++] = range;
}

static struct lazy_range range_part(const struct lazy_range *range, uint64_t start, uint64_t end)
{
	return (struct lazy_range){
		.address = start,
		.bytes = end - start,
		.image = range->image == LAZY_NO_IMAGE ? LAZY_NO_IMAGE : range->image + (start - range->address),
	};
}

/* What lies in [@start, @end) moves to @to, or loses its image (@to NULL), or goes (@drop). */
static void change_ranges(struct space *space, uint64_t start, uint64_t end, const uint64_t *to, bool drop)
{
	struct lazy_ranges changed = {};

	for (size_t i = 0; i < space->ranges.count; i++) {
		const struct lazy_range *range = &space->ranges.items[i];
		uint64_t range_end = range->address + range->bytes;
		uint64_t from = range->address > start ? range->address : start;
		uint64_t until = range_end < end ? range_end : end;
		if (from >= until) {
			add_range(&changed, *range);
			continue;
		}
		add_range(&changed, range_part(range, range->address, from));
		struct lazy_range part = range_part(range, from, until);
		if (to)
			part.address = *to + (from - start);
		else
			part.image = LAZY_NO_IMAGE;
		if (!drop)
			add_range(&changed, part);
		add_range(&changed, range_part(range, until, range_end));
	}
	free(space->ranges.items);
	space->ranges = changed;
	int error = space->state_fd < 0 ? 0 : lazy_state_write(space->state_fd, space->image_id, &space->ranges);
	if (error < 0)
		log_warn("cannot note a change of memory: %s", strerror(-error));
}

static const struct lazy_range *find_range(const struct space *space, uint64_t address)
{
	for (size_t i = 0; i < space->ranges.count; i++)
		if (address - space->ranges.items[i].address < space->ranges.items[i].bytes)
			return &space->ranges.items[i];
	return NULL;
}

/* Whether anybody still wants this page of the image. */
static bool is_wanted(const struct postcopy *postcopy, uint32_t id, uint64_t address)
{
	for (size_t i = 0; i < postcopy->space_count; i++) {
		const struct space *space = postcopy->spaces[i];
		for (size_t r = 0; space->image_id == id && !space->ended && r < space->ranges.count; r++)
			if (space->ranges.items[r].image != LAZY_NO_IMAGE &&
			    address - space->ranges.items[r].image < space->ranges.items[r].bytes)
				return true;
	}
	return false;
}

/* ---- spaces and their guard ---- */

static int guard_lost(struct postcopy *postcopy, int error)
{
	return fail_errno(postcopy->failure, error, "lazy-guard", NULL, NULL, "cannot hand memory to the guard");
}

static void take_nothing(void *context, const struct lazy_held *held)
{
	close(held->userfault_fd);
	close(held->state_fd);
}

/*
 * A guard that was killed is replaced by a new one, which gets all there is. Nobody looks for the old one: the kernel
 * closes its connection to us before the socket that it listens on, and who connects in between would be left without.
 */
static int guard_again(struct postcopy *postcopy)
{
	close_fd_pointer(&postcopy->guard_fd);
	log_warn("the guard of the memory has ended; a new one takes over");
	int error = lazy_guard_start(postcopy->work_dirfd, postcopy->failure, &postcopy->guard_fd);
	for (size_t i = 0; i < postcopy->space_count && !error; i++) {
		const struct space *space = postcopy->spaces[i];
		if (space->state_fd < 0)
			continue;
		error = lazy_guard_add(postcopy->guard_fd,
				       &(struct lazy_held){space->number, space->userfault_fd, space->state_fd});
		if (error) {
			close_fd_pointer(&postcopy->guard_fd);
			return guard_lost(postcopy, error);
		}
	}
	return error;
}

/* Without a guard memory still comes, and to end here would be the end of the tree: it would run on zeros. */
static void replace_guard(struct postcopy *postcopy)
{
	char line[1024];

	if (guard_again(postcopy) == 0)
		return;
	log_warn("%s; going on without", failure_line(postcopy->failure, line, sizeof(line)));
	failure_clear(postcopy->failure);
}

static struct space *keep_space(struct postcopy *postcopy, const struct lazy_held *held, uint32_t image_id,
				const struct lazy_ranges *ranges)
{
	struct space *space = xcalloc(1, sizeof(*space));

	*space = (struct space){held->number, image_id, held->userfault_fd, held->state_fd, .ranges = *ranges};
	if (held->number > postcopy->last_number)
		postcopy->last_number = held->number;
	ARRAY_GROW(postcopy->spaces, postcopy->space_count, postcopy->space_capacity);
	postcopy->spaces[postcopy->space_count++] = space;
	return space;
}

int postcopy_add(struct postcopy *postcopy, int userfault_fd, int state_fd)
{
	struct lazy_ranges ranges;
	uint32_t image_id;
	int error = lazy_state_read(state_fd, &image_id, &ranges);

	if (error) {
		close(userfault_fd);
		close(state_fd);
		return fail_errno(postcopy->failure, error, "lazy-state", NULL, NULL,
				  "what a restored task says about its memory cannot be read");
	}
	const struct lazy_held held = {++postcopy->last_number, userfault_fd, state_fd};
	keep_space(postcopy, &held, image_id, &ranges);
	error = lazy_guard_add(postcopy->guard_fd, &held);
	if (error)
		error = guard_again(postcopy);
	return error ? error : add_image(postcopy, image_id, state_fd);
}

static void drop_space(struct postcopy *postcopy, size_t index)
{
	struct space *space = postcopy->spaces[index];

	lazy_guard_drop(postcopy->guard_fd, space->number);
	close(space->userfault_fd);
	close_fd_pointer(&space->state_fd);
	free(space->ranges.items);
	free(space);
	postcopy->spaces[index] = postcopy->spaces[--postcopy->space_count];
}

/* ---- what the tasks say ---- */

/*
 * The child exists and waits: to close its userfaultfd, or to end here, would let it run on zeros. So it is served in
 * any case, and what cannot be handed to the guard is only not safe from a kill.
 */
static void add_fork(struct postcopy *postcopy, const struct space *parent, int userfault_fd)
{
	struct lazy_ranges ranges = {};
	int state_fd = lazy_state_create();
	int error = state_fd < 0 ? state_fd : lazy_state_write(state_fd, parent->image_id, &parent->ranges);

	for (size_t i = 0; i < parent->ranges.count; i++)
		add_range(&ranges, parent->ranges.items[i]);
	if (error)
		close_fd_pointer(&state_fd);
	const struct lazy_held held = {++postcopy->last_number, userfault_fd, state_fd};
	keep_space(postcopy, &held, parent->image_id, &ranges);
	if (!error)
		error = lazy_guard_add(postcopy->guard_fd, &held);
	if (error && state_fd >= 0)
		replace_guard(postcopy);
	else if (error)
		log_warn("the memory of a new process cannot be handed to the guard: %s", strerror(-error));
}

/* Who waits there faults again, if the page is still missed. */
static void wake(const struct space *space, uint64_t address, uint64_t bytes)
{
	struct uffdio_range range = {address, bytes};

	ioctl(space->userfault_fd, UFFDIO_WAKE, &range);
}

static int read_messages(struct postcopy *postcopy, struct space *space);

/* The memory is being changed: what is said about it comes first. */
static int let_change(struct postcopy *postcopy, struct space *space)
{
	const struct timespec pause = {.tv_nsec = PAUSE_NS};

	nanosleep(&pause, NULL);
	return read_messages(postcopy, space);
}

static int put_zero(struct postcopy *postcopy, struct space *space, uint64_t address)
{
	struct uffdio_zeropage zero = {.range = {address, PAGE_BYTES}};

	if (ioctl(space->userfault_fd, UFFDIO_ZEROPAGE, &zero) == 0)
		return 0;
	if (errno == ESRCH)
		space->ended = true;
	else if (errno == EEXIST || errno == EAGAIN || errno == ENOENT)
		wake(space, address, PAGE_BYTES);
	else
		return fail_errno(postcopy->failure, errno, "lazy-copy", NULL, NULL,
				  "cannot put a page into a restored task, which waits for it");
	return 0;
}

static bool in_flight(const struct postcopy *postcopy, uint32_t id, uint64_t address)
{
	for (size_t i = 0; i < postcopy->flight_count; i++)
		if (postcopy->flights[i].id == id &&
		    address - postcopy->flights[i].address < postcopy->flights[i].pages * PAGE_BYTES)
			return true;
	return false;
}

static int request(struct postcopy *postcopy, struct postcopy_image *image, uint64_t number, uint64_t address,
		   uint64_t pages, bool urgent)
{
	postcopy_image_set_asked(image, number, pages, true);
	ARRAY_GROW(postcopy->flights, postcopy->flight_count, postcopy->flight_capacity);
	postcopy->flights[postcopy->flight_count++] = (struct flight){image->id, address, pages};
	return postcopy->supply->ops->request(postcopy->supply, postcopy->failure, postcopy, image->id, address, pages,
					      urgent);
}

static int serve_fault(struct postcopy *postcopy, struct space *space, uint64_t address)
{
	struct postcopy_image *image = find_image(postcopy, space->image_id);
	const struct lazy_range *range = find_range(space, address);
	uint64_t left, number = POSTCOPY_NO_PAGE, in_image;

	/* Outside of all ranges: a mapping that has grown since. */
	if (!range || range->image == LAZY_NO_IMAGE || !image)
		return put_zero(postcopy, space, address);
	in_image = range->image + (address - range->address);
	number = postcopy_image_number(image, in_image, &left);
	if (number == POSTCOPY_NO_PAGE)
		return put_zero(postcopy, space, address);
	if (in_flight(postcopy, image->id, in_image))
		return 0;
	if (left > FAULT_PAGES)
		left = FAULT_PAGES;
	image->cursor = number + left;
	image->touched = true;
	return request(postcopy, image, number, in_image, left, true);
}

/*
 * The pages of a range are missed no more, or at another place. Whoever waited for one there would wait for ever: what
 * was asked for it goes elsewhere, or nowhere.
 */
static void lose_range(struct space *space, uint64_t start, uint64_t end, const uint64_t *to, bool drop)
{
	change_ranges(space, start, end, to, drop);
	wake(space, start, end - start);
}

static int take_message(struct postcopy *postcopy, struct space *space, const struct uffd_msg *message)
{
	switch (message->event) {
	case UFFD_EVENT_PAGEFAULT:
		return serve_fault(postcopy, space, message->arg.pagefault.address & ~(uint64_t)(PAGE_BYTES - 1));
	case UFFD_EVENT_FORK:
		add_fork(postcopy, space, (int)message->arg.fork.ufd);
		return 0;
	case UFFD_EVENT_REMAP: {
		const uint64_t to = message->arg.remap.to;
		change_ranges(space, to, to + message->arg.remap.len, NULL, true);
		lose_range(space, message->arg.remap.from, message->arg.remap.from + message->arg.remap.len, &to,
			   false);
		return 0;
	}
	case UFFD_EVENT_REMOVE:
		lose_range(space, message->arg.remove.start, message->arg.remove.end, NULL, false);
		return 0;
	case UFFD_EVENT_UNMAP:
		lose_range(space, message->arg.remove.start, message->arg.remove.end, NULL, true);
		return 0;
	default:
		return 0;
	}
}

/* A new process's memory comes with its message as a descriptor. The message stays, and its parent waits. */
static int fail_messages(struct postcopy *postcopy, int error)
{
	return fail_errno(postcopy->failure, error, "lazy-messages", NULL,
			  error == EMFILE || error == ENFILE ? "raise the limit of open files (ulimit -Hn)" : NULL,
			  "cannot read what a restored task waits for");
}

static int read_messages(struct postcopy *postcopy, struct space *space)
{
	struct uffd_msg message;

	while (!space->ended) {
		ssize_t got = read(space->userfault_fd, &message, sizeof(message));
		if (got < 0 && errno != EAGAIN && errno != EINTR)
			return fail_messages(postcopy, errno);
		if (got != sizeof(message))
			return 0;
		int error = take_message(postcopy, space, &message);
		if (error < 0)
			return error;
	}
	return 0;
}

/* ---- pages into place ---- */

static int64_t put_pages(struct postcopy *postcopy, struct space *space, uint64_t address, uint64_t pages,
			 const char *data);

/*
 * What lies there is no mapping of the userfaultfd, or more than one. mprotect(2) splits mappings without a word.
 * mremap(2) and munmap(2) give word, but after the change: it is not here yet. From before the change until their word
 * was read, every further call says EAGAIN, so a page that finds no mapping twice has none.
 */
static int64_t put_nowhere(struct postcopy *postcopy, struct space *space, uint64_t address, uint64_t pages,
			   const char *data)
{
	if (pages > 1)
		return put_pages(postcopy, space, address, 1, data);
	if (space->nowhere != address) {
		space->nowhere = address;
		return read_messages(postcopy, space);
	}
	wake(space, address, PAGE_BYTES);
	return 1;
}

/* One page or more at @address of the space. Returns how many were dealt with, 0 = look again, or a failure. */
static int64_t put_pages(struct postcopy *postcopy, struct space *space, uint64_t address, uint64_t pages,
			 const char *data)
{
	struct uffdio_copy copy = {.dst = address, .src = (uint64_t)data, .len = pages * PAGE_BYTES};

	if (ioctl(space->userfault_fd, UFFDIO_COPY, &copy) == 0) {
		space->nowhere = 0;
		return (int64_t)pages;
	}
	if (copy.copy > 0)
		return copy.copy / PAGE_BYTES;
	switch (errno) {
	case EEXIST:
		wake(space, address, PAGE_BYTES);
		return 1;
	case EAGAIN:
		return let_change(postcopy, space);
	case ENOENT:
	case EINVAL:
		return put_nowhere(postcopy, space, address, pages, data);
	case ESRCH:
		space->ended = true;
		return (int64_t)pages;
	default:
		return fail_errno(postcopy->failure, errno, "lazy-copy", NULL,
				  errno == ENOMEM ? "free memory and start `criu lazy-pages` again" : NULL,
				  "cannot put pages into a restored task, which waits for them");
	}
}

/* A page may be mapped at several places: forks, and copies that mremap has left. */
static int deliver_to(struct postcopy *postcopy, struct space *space, uint64_t in_image, uint64_t pages,
		      const char *data)
{
	uint64_t end = in_image + pages * PAGE_BYTES;

	for (uint64_t at = in_image; at < end && !space->ended;) {
		const struct lazy_range *range = NULL;
		for (size_t i = 0; i < space->ranges.count && !range; i++)
			if (space->ranges.items[i].image != LAZY_NO_IMAGE &&
			    at - space->ranges.items[i].image < space->ranges.items[i].bytes)
				range = &space->ranges.items[i];
		if (!range) {
			at += PAGE_BYTES;
			continue;
		}
		uint64_t skip = at - range->image, room = range->bytes - skip;
		int64_t done = put_pages(postcopy, space, range->address + skip,
					 (end - at < room ? end - at : room) / PAGE_BYTES, data + (at - in_image));
		if (done < 0)
			return (int)done;
		at += done * PAGE_BYTES;
	}
	return 0;
}

int postcopy_deliver(struct postcopy *postcopy, uint32_t id, uint64_t address, uint64_t pages, const void *data)
{
	struct postcopy_image *image = find_image(postcopy, id);
	size_t index = 0;
	int error = 0;

	while (index < postcopy->flight_count &&
	       (postcopy->flights[index].id != id || postcopy->flights[index].address != address))
		index++;
	if (!image || index == postcopy->flight_count || !pages || pages > postcopy->flights[index].pages)
		return fail(postcopy->failure, EPROTO, "page-protocol", "page server", NULL,
			    "it sends %llu pages at %llx that nobody has asked for", (unsigned long long)pages,
			    (unsigned long long)address);
	struct flight flight = postcopy->flights[index];
	postcopy->flights[index] = postcopy->flights[--postcopy->flight_count];
	/* Spaces may be added meanwhile, by forks: they are behind, and get theirs too. */
	for (size_t i = 0; i < postcopy->space_count && !error; i++)
		if (postcopy->spaces[i]->image_id == id)
			error = deliver_to(postcopy, postcopy->spaces[i], address, pages, data);
	uint64_t left, number = postcopy_image_number(image, address, &left);
	if (!error)
		postcopy_image_set_arrived(image, number, pages);
	postcopy_image_set_asked(image, number + pages, flight.pages - pages, false);
	if (pages < flight.pages && image->cursor > number + pages)
		image->cursor = number + pages;
	return error;
}

/* ---- everything else ---- */

static bool image_in_flight(const struct postcopy *postcopy, uint32_t id)
{
	for (size_t i = 0; i < postcopy->flight_count; i++)
		if (postcopy->flights[i].id == id)
			return true;
	return false;
}

/* The next pages that nobody has asked for, from the cursor on and round. Returns false if there are none. */
static bool next_chunk(const struct postcopy *postcopy, struct postcopy_image *image, uint64_t *ret_number,
		       uint64_t *ret_pages)
{
	while ((image->cursor = postcopy_image_next(image)) < image->total) {
		uint64_t left, pages = 1, address = postcopy_image_address(image, image->cursor);
		if (!is_wanted(postcopy, image->id, address)) {
			postcopy_image_set_asked(image, image->cursor, 1, true);
			continue;
		}
		postcopy_image_number(image, address, &left);
		while (pages < left && pages < CHUNK_PAGES && !postcopy_image_is_asked(image, image->cursor + pages))
			pages++;
		*ret_number = image->cursor;
		*ret_pages = pages;
		return true;
	}
	return false;
}

static void finish_image(struct postcopy *postcopy, size_t index)
{
	struct postcopy_image *image = postcopy->images[index];

	log_info("all memory of process %u is there", image->id);
	for (size_t i = postcopy->space_count; i-- > 0;)
		if (postcopy->spaces[i]->image_id == image->id)
			drop_space(postcopy, i);
	postcopy_image_free(image);
	postcopy->images[index] = postcopy->images[--postcopy->image_count];
}

/* One chunk of the image that had the last fault, or of any. */
static int stream(struct postcopy *postcopy, bool *ret_idle)
{
	uint64_t number, pages;

	*ret_idle = true;
	for (size_t pass = 0; pass < 2; pass++)
		for (size_t i = 0; i < postcopy->image_count; i++) {
			struct postcopy_image *image = postcopy->images[i];
			if (!pass && !image->touched)
				continue;
			if (next_chunk(postcopy, image, &number, &pages)) {
				*ret_idle = false;
				image->touched = false;
				return request(postcopy, image, number, postcopy_image_address(image, number), pages,
					       false);
			}
			image->touched = false;
			if (!image_in_flight(postcopy, image->id)) {
				finish_image(postcopy, i);
				*ret_idle = false;
				return 0;
			}
		}
	return 0;
}

bool postcopy_has_work(const struct postcopy *postcopy)
{
	return postcopy->space_count > 0;
}

/* Returns the number of descriptors that are ready, or -errno. */
static int wait_events(struct postcopy *postcopy, struct pollfd *wait, size_t count, bool idle)
{
	int ready;

	do
		ready = poll(wait, count, idle ? -1 : 0);
	while (ready < 0 && errno == EINTR);
	return ready < 0 ? fail_errno(postcopy->failure, errno, "lazy-poll", NULL, NULL, "poll") : ready;
}

int postcopy_step(struct postcopy *postcopy, int extra_fd, bool *ret_extra)
{
	enum { EXTRA, SUPPLY, GUARD, FIXED };
	size_t count = postcopy->space_count;
	_cleanup_free_ struct pollfd *wait = xcalloc(count + FIXED, sizeof(*wait));
	bool idle = true;
	int error = postcopy->flight_count < postcopy->supply->window ? stream(postcopy, &idle) : 0;

	if (error < 0)
		return error;
	count = postcopy->space_count < count ? postcopy->space_count : count;
	wait[EXTRA] = (struct pollfd){extra_fd, POLLIN, 0};
	wait[SUPPLY] = (struct pollfd){postcopy->supply->ops->fd(postcopy->supply), POLLIN, 0};
	wait[GUARD] = (struct pollfd){postcopy->guard_fd, POLLIN, 0};
	for (size_t i = 0; i < count; i++)
		wait[FIXED + i] = (struct pollfd){postcopy->spaces[i]->userfault_fd, POLLIN, 0};
	error = wait_events(postcopy, wait, count + FIXED, idle && (postcopy->space_count || extra_fd >= 0));
	if (error < 0)
		return error;
	if (wait[GUARD].revents)
		replace_guard(postcopy);
	error = 0;
	for (size_t i = 0; i < count && !error; i++)
		if (wait[FIXED + i].revents)
			error = read_messages(postcopy, postcopy->spaces[i]);
	if (!error && wait[SUPPLY].revents)
		error = postcopy->supply->ops->receive(postcopy->supply, postcopy->failure, postcopy);
	*ret_extra = wait[EXTRA].revents;
	for (size_t i = postcopy->space_count; i-- > 0;)
		if (postcopy->spaces[i]->ended)
			drop_space(postcopy, i);
	return error;
}

/* ---- life ---- */

static void take_held(void *context, const struct lazy_held *held)
{
	struct postcopy *postcopy = context;
	struct lazy_ranges ranges;
	uint32_t image_id;

	if (lazy_state_read(held->state_fd, &image_id, &ranges) < 0) {
		take_nothing(context, held);
		return;
	}
	keep_space(postcopy, held, image_id, &ranges);
}

static int compare_age(const void *left, const void *right)
{
	const struct space *a = *(struct space *const *)left, *b = *(struct space *const *)right;

	return a->number < b->number ? -1 : a->number > b->number;
}

int postcopy_new(struct page_supply *supply, int work_dirfd, struct failure *failure, struct postcopy **ret_postcopy)
{
	struct postcopy *postcopy = xcalloc(1, sizeof(*postcopy));

	*postcopy = (struct postcopy){.supply = supply, .failure = failure, .work_dirfd = work_dirfd, .guard_fd = -1};
	int error = lazy_guard_attach(work_dirfd, failure, take_held, postcopy, &postcopy->guard_fd);
	/* What has arrived is known to the oldest: forks came later. */
	qsort(postcopy->spaces, postcopy->space_count, postcopy->spaces ? sizeof(*postcopy->spaces) : 1, compare_age);
	for (size_t i = 0; i < postcopy->space_count && !error; i++)
		error = add_image(postcopy, postcopy->spaces[i]->image_id, postcopy->spaces[i]->state_fd);
	if (error < 0) {
		postcopy_free(postcopy);
		return error;
	}
	if (postcopy->space_count)
		log_info("going on with %zu address spaces that a guard has held", postcopy->space_count);
	*ret_postcopy = postcopy;
	return 0;
}

/* The guard keeps what it has. */
void postcopy_free(struct postcopy *postcopy)
{
	if (!postcopy)
		return;
	for (size_t i = 0; i < postcopy->space_count; i++) {
		close(postcopy->spaces[i]->userfault_fd);
		close_fd_pointer(&postcopy->spaces[i]->state_fd);
		free(postcopy->spaces[i]->ranges.items);
		free(postcopy->spaces[i]);
	}
	for (size_t i = 0; i < postcopy->image_count; i++)
		postcopy_image_free(postcopy->images[i]);
	close_fd_pointer(&postcopy->guard_fd);
	free(postcopy->spaces);
	free(postcopy->images);
	free(postcopy->flights);
	free(postcopy);
}
