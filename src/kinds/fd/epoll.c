/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event polls.
 *
 * fdinfo lists what an epoll watches: the descriptor number it was added under, the file's device and inode, events
 * and data. The number need not lead to the watched file any more: the program may have closed it while the file
 * lived on under another number or in another task. So each number is checked, by the inode for sockets (which
 * cannot be opened twice) and by kcmp for all others; if it leads elsewhere, all open files of the tree are searched
 * for the right one, whose id is put into eventpoll_tfd_entry.id (0 = the number is right). On restore it is added
 * under its old number, which is lent to it for that moment.
 *
 * What cannot be seen from outside: which events are ready and already told. So an edge-triggered event that the
 * program has consumed is told once more after a restore, as epoll does for every file that is added when it is ready.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/fdinfo.h"

/* The bits that a fired EPOLLONESHOT leaves in events. */
#define SETTING_BITS (EPOLLONESHOT | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE)

extern const struct fd_kind epoll_kind;

static bool epoll_match(const struct target_fd *target)
{
	return !strcmp(target->link, "anon_inode:[eventpoll]");
}

static bool parse_watch(const char *line, EventpollTfdEntry *entry)
{
	unsigned int number, events, device;
	uint64_t data, inode;
	int64_t position;

	if (sscanf(line, "tfd: %u events: %x data: %" SCNx64 " pos:%" SCNd64 " ino:%" SCNx64 " sdev:%x", &number,
		   &events, &data, &position, &inode, &device) != 6)
		return false;
	entry->tfd = number;
	entry->events = events;
	entry->data = data;
	entry->has_dev = entry->has_inode = entry->has_pos = true;
	entry->dev = device;
	entry->inode = inode;
	entry->pos = position;
	return true;
}

/* Takes @text apart: sscanf() walks to the end of its string, so each line must be one of its own. */
static int parse_watches(struct dump *dump, char *text, EventpollFileEntry *epoll)
{
	size_t capacity = 0;
	char *line;

	for (const char *found = text; (found = strstr(found, "tfd:")); found++)
		capacity++;
	epoll->tfd = arena_alloc(&dump->arena, (capacity + 1) * sizeof(*epoll->tfd));
	while ((line = strsep(&text, "\n"))) {
		if (strncmp(line, "tfd:", 4))
			continue;
		EventpollTfdEntry *watch = arena_message(&dump->arena, EventpollTfdEntry, eventpoll_tfd_entry);
		if (!parse_watch(line, watch))
			return fail(&dump->failure, EOPNOTSUPP, "fd-fdinfo", NULL, NULL,
				    "this kernel writes an epoll's fdinfo in an unknown way");
		epoll->tfd[epoll->n_tfd++] = watch;
	}
	return 0;
}

static int epoll_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	_cleanup_free_ char *text = NULL;
	int ret = fdinfo_read(dump, target->fd, &text);

	if (ret < 0)
		return ret;
	entry->epfd = arena_message(&dump->arena, EventpollFileEntry, eventpoll_file_entry);
	entry->epfd->id = entry->id;
	entry->epfd->flags = target->flags;
	entry->epfd->fown = target->fown;
	return parse_watches(dump, text, entry->epfd);
}

/* One epoll and one of its watches, to be compared with open files. */
struct watch_search {
	const struct dump_file *epoll;
	int epoll_fd; /* our own descriptor for the epoll */
	const EventpollTfdEntry *watch;
	size_t index; /* of the watch in the epoll's list, which has the kernel's order */
};

/* How many watches of the same number stand before it: that is how kcmp tells them apart. */
static uint32_t same_number_before(const struct watch_search *search)
{
	const EventpollFileEntry *epoll = search->epoll->entry->epfd;
	uint32_t count = 0;

	for (size_t i = 0; i < search->index; i++)
		count += epoll->tfd[i]->tfd == search->watch->tfd;
	return count;
}

static bool same_inode(const struct dump_file *file, const EventpollTfdEntry *watch)
{
	return file->stat.st_ino == watch->inode &&
	       (major(file->stat.st_dev) << 20 | minor(file->stat.st_dev)) == watch->dev;
}

/* Returns 1 if @file is what is watched, 0 if not, or a failure. */
static int is_watched(struct dump *dump, const struct watch_search *search, const struct dump_file *file)
{
	_cleanup_fd_ int fd = -1;
	int ret;

	if (!same_inode(file, search->watch))
		return 0;
	if (S_ISSOCK(file->stat.st_mode))
		return 1;
	ret = dump_file_get(dump, file, &fd);
	if (ret < 0)
		return ret;
	struct kcmp_epoll_slot slot = {
		.efd = search->epoll_fd,
		.tfd = search->watch->tfd,
		.toff = same_number_before(search),
	};
	ret = syscall(SYS_kcmp, getpid(), getpid(), KCMP_EPOLL_TFD, fd, &slot);
	if (ret < 0)
		return fail_errno(&dump->failure, errno, "fd-kcmp",
				  dump_fd_name(dump, search->epoll->task, search->epoll->number),
				  "the kernel needs CONFIG_KCMP", "cannot compare descriptors");
	return ret == 0;
}

static int search_everywhere(struct dump *dump, const struct watch_search *search, struct dump_file **ret_file)
{
	for (size_t i = 0; i < dump->file_count; i++) {
		struct dump_file *file = dump->files[i];
		int ret = file->number >= 0 || file->kept_fd >= 0 ? is_watched(dump, search, file) : 0;
		if (ret < 0)
			return ret;
		if (ret) {
			*ret_file = file;
			return 0;
		}
	}
	return fail(&dump->failure, EOPNOTSUPP, "fd-epoll-outside",
		    dump_fd_name(dump, search->epoll->task, search->epoll->number),
		    "dump a tree that contains that process too, or remove it from the epoll before the dump",
		    "the epoll watches a file (added as fd %u, inode %" PRIu64
		    ") that only a process outside the tree holds open",
		    search->watch->tfd, search->watch->inode);
}

static bool number_was_refused(const struct dump_task *task, int number)
{
	for (size_t i = 0; i < task->fd_count; i++)
		if (task->fds[i].number == number)
			return !task->fds[i].file;
	return false;
}

static int resolve_watch(struct dump *dump, const struct watch_search *search, EventpollTfdEntry *watch)
{
	struct dump_file *file = dump_find_fd(dump, search->epoll->task, watch->tfd);
	int ret = file ? is_watched(dump, search, file) : 0;

	if (ret < 0)
		return ret;
	if (ret == 1 || (dump->only_explain && number_was_refused(search->epoll->task, watch->tfd)))
		return 0;
	ret = search_everywhere(dump, search, &file);
	if (!ret)
		watch->id = file->id;
	return ret;
}

static int resolve_watches(struct dump *dump, const struct dump_file *file)
{
	const EventpollFileEntry *epoll = file->entry->epfd;
	struct watch_search search = {.epoll = file};
	_cleanup_fd_ int fd = -1;
	int ret = epoll->n_tfd ? dump_file_get(dump, file, &fd) : 0;

	search.epoll_fd = fd;
	for (size_t i = 0; i < epoll->n_tfd && !ret; i++) {
		search.watch = epoll->tfd[i];
		search.index = i;
		ret = resolve_watch(dump, &search, epoll->tfd[i]);
		if (ret < 0)
			ret = dump_blocked(dump);
	}
	return ret;
}

static int epoll_dump_finish(struct dump *dump)
{
	for (size_t i = 0; i < dump->file_count; i++) {
		const struct dump_file *file = dump->files[i];
		int ret = file->kind == &epoll_kind && file->entry->epfd ? resolve_watches(dump, file) : 0;
		if (ret < 0)
			return ret;
	}
	return 0;
}

static int epoll_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const EventpollFileEntry *entry = file->entry->epfd;
	_cleanup_fd_ int fd = -1;
	int ret;

	if (!entry)
		return fail(&restore->failure, EINVAL, "image-epoll", NULL, NULL,
			    "files.img: file %u has no epoll entry", file->id);
	fd = epoll_create1(EPOLL_CLOEXEC);
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "epoll-open", NULL, NULL, "cannot make an epoll");
	ret = status_flags_restore(restore, fd, entry->flags);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

static bool is_disarmed(const EventpollTfdEntry *watch)
{
	return (watch->events & EPOLLONESHOT) && !(watch->events & ~(uint32_t)SETTING_BITS);
}

/*
 * A watch whose one shot was fired waits for nothing, not even for EPOLLERR and EPOLLHUP, which the kernel puts into
 * everything that is added. Only firing makes it so: it is added for all events, and told by epoll_wait() if one is
 * there. If none is there, an error or a hangup of that file before the program arms it again will be told.
 */
static int add_disarmed(int epoll_fd, int number, const EventpollTfdEntry *watch)
{
	struct epoll_event event = {
		.events = watch->events | EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLRDNORM | EPOLLWRNORM,
		.data.u64 = watch->data,
	};
	struct epoll_event told;

	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, number, &event) < 0)
		return -errno;
	if (epoll_wait(epoll_fd, &told, 1, 0) == 1)
		return 0;
	event.events = watch->events;
	return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, number, &event) < 0 ? -errno : 0;
}

static int add_watch(int epoll_fd, int number, const EventpollTfdEntry *watch)
{
	struct epoll_event event = {.events = watch->events, .data.u64 = watch->data};

	if (is_disarmed(watch))
		return add_disarmed(epoll_fd, number, watch);
	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, number, &event) < 0 ? -errno : 0;
}

/* Adds @target under a number that is free or another file's now, and gives the number back. Returns 0 or -errno. */
static int add_under_number(int epoll_fd, int target, int number, const EventpollTfdEntry *watch)
{
	int flags = fcntl(number, F_GETFD);
	_cleanup_fd_ int other = flags < 0 ? -1 : fcntl(number, F_DUPFD_CLOEXEC, 0);
	int ret;

	if (flags >= 0 && other < 0)
		return -errno;
	if (dup3(target, number, O_CLOEXEC) < 0)
		return -errno;
	ret = add_watch(epoll_fd, number, watch);
	if (other < 0)
		close(number);
	else if (dup3(other, number, flags & FD_CLOEXEC ? O_CLOEXEC : 0) < 0)
		return -errno;
	return ret;
}

static int restore_watch(struct restore *restore, int epoll_fd, const EventpollTfdEntry *watch)
{
	_cleanup_fd_ int target = -1;
	int ret;

	if (watch->tfd > INT32_MAX)
		return fail(&restore->failure, EINVAL, "image-epoll", NULL, NULL, "it watches fd %u, which cannot be",
			    watch->tfd);
	if (watch->id) {
		if (!restore_find_file(restore, watch->id))
			return fail(&restore->failure, EINVAL, "image-epoll", NULL, NULL,
				    "it watches file %u, which is not in the images", watch->id);
		ret = restore_take_file(restore, watch->id, &target);
		if (ret < 0)
			return ret;
		ret = add_under_number(epoll_fd, target, watch->tfd, watch);
	} else {
		ret = add_watch(epoll_fd, watch->tfd, watch);
	}
	if (ret < 0)
		return fail_errno(&restore->failure, ret, "epoll-add", NULL, NULL, "cannot watch fd %u for events 0x%x",
				  watch->tfd, watch->events);
	return 0;
}

/* Disarmed watches come first: epoll_wait() must not meet another one. */
static int epoll_finish(struct restore *restore, struct restore_file *file, int fd)
{
	const EventpollFileEntry *entry = file->entry->epfd;

	for (int disarmed = 1; disarmed >= 0; disarmed--)
		for (size_t i = 0; i < entry->n_tfd; i++) {
			if (is_disarmed(entry->tfd[i]) != disarmed)
				continue;
			int ret = restore_watch(restore, fd, entry->tfd[i]);
			if (ret < 0)
				return ret;
		}
	return 0;
}

const struct fd_kind epoll_kind = {
	.name = "epoll",
	.type = FD_TYPES__EVENTPOLL,
	.match = epoll_match,
	.dump = epoll_dump,
	.dump_finish = epoll_dump_finish,
	.open = epoll_open,
	.finish = epoll_finish,
};
