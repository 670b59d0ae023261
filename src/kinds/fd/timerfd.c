/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Timers as a descriptor.
 *
 * The kernel tells the time that remains, also for a timer that was set to a point in time; so that is what the
 * images hold, and the time between dump and restore does not count. timerfd_gettime() brings a periodic timer that
 * has fired up to date first, which fdinfo alone does not: it would show it as if it had stopped. A program cannot
 * notice that. Expirations that nobody has read yet (ticks) come back by an ioctl.
 *
 * A timer is armed in `finish`, as late as its task still can, so that building the tree does not eat its time.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/fdinfo.h"

#ifndef TFD_IOC_SET_TICKS
#define TFD_IOC_SET_TICKS _IOW('T', 0, uint64_t)
#endif

#define NS_PER_SECOND 1000000000
/* Seconds of the last point in time that the kernel can express (2^63 nanoseconds). */
#define LAST_SECOND (INT64_MAX / NS_PER_SECOND)

static bool timerfd_match(const struct target_fd *target)
{
	return !strcmp(target->link, "anon_inode:[timerfd]");
}

static int timerfd_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	_cleanup_free_ char *text = NULL;
	uint64_t clock, ticks, set_flags;
	struct itimerspec remaining;
	int ret;

	if (timerfd_gettime(target->fd, &remaining) < 0)
		return fail_errno(&dump->failure, errno, "timerfd-read", NULL, NULL, "cannot ask for its time");
	ret = fdinfo_read(dump, target->fd, &text);
	if (!ret)
		ret = fdinfo_number(dump, text, "clockid", 10, &clock);
	if (!ret)
		ret = fdinfo_number(dump, text, "ticks", 10, &ticks);
	if (!ret)
		ret = fdinfo_number(dump, text, "settime flags", 8, &set_flags);
	if (ret < 0)
		return ret;
	entry->tfd = arena_message(&dump->arena, TimerfdEntry, timerfd_entry);
	entry->tfd->id = entry->id;
	entry->tfd->flags = target->flags;
	entry->tfd->fown = target->fown;
	entry->tfd->clockid = clock;
	entry->tfd->ticks = ticks;
	entry->tfd->settime_flags = set_flags;
	entry->tfd->vsec = remaining.it_value.tv_sec;
	entry->tfd->vnsec = remaining.it_value.tv_nsec;
	entry->tfd->isec = remaining.it_interval.tv_sec;
	entry->tfd->insec = remaining.it_interval.tv_nsec;
	return 0;
}

static bool is_time(uint64_t seconds, uint64_t nanoseconds)
{
	return seconds <= LAST_SECOND && nanoseconds < NS_PER_SECOND;
}

static int timerfd_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const TimerfdEntry *entry = file->entry->tfd;
	_cleanup_fd_ int fd = -1;
	int ret;

	if (!entry || !is_time(entry->vsec, entry->vnsec) || !is_time(entry->isec, entry->insec))
		return fail(&restore->failure, EINVAL, "image-timerfd", NULL, NULL,
			    "files.img: file %u has no valid timerfd entry", file->id);
	fd = timerfd_create(entry->clockid, TFD_CLOEXEC);
	if (fd < 0)
		return fail_errno(&restore->failure, errno, "timerfd-open", NULL, NULL,
				  "cannot make a timer of clock %u", entry->clockid);
	ret = status_flags_restore(restore, fd, entry->flags);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

/* The point in time that is @remaining from now, at most the last one there is. */
static void make_absolute(int clock, struct timespec *remaining)
{
	struct timespec now;

	/* The clocks that wake the machine up are the others' time, and cannot be read without an alarm device. */
	if (clock == CLOCK_REALTIME_ALARM)
		clock = CLOCK_REALTIME;
	if (clock == CLOCK_BOOTTIME_ALARM)
		clock = CLOCK_BOOTTIME;
	if (clock_gettime(clock, &now) < 0)
		return;
	remaining->tv_sec += now.tv_sec;
	remaining->tv_nsec += now.tv_nsec;
	if (remaining->tv_nsec >= NS_PER_SECOND) {
		remaining->tv_nsec -= NS_PER_SECOND;
		remaining->tv_sec++;
	}
	if (remaining->tv_sec >= LAST_SECOND)
		*remaining = (struct timespec){.tv_sec = LAST_SECOND};
}

static int timerfd_finish(struct restore *restore, struct restore_file *file, int fd)
{
	const TimerfdEntry *entry = file->entry->tfd;
	int flags = entry->settime_flags & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
	struct itimerspec time = {
		.it_value = {.tv_sec = entry->vsec, .tv_nsec = entry->vnsec},
		.it_interval = {.tv_sec = entry->isec, .tv_nsec = entry->insec},
	};

	/* Zero is a timer that is not armed, and stays so. */
	if ((flags & TFD_TIMER_ABSTIME) && (entry->vsec || entry->vnsec))
		make_absolute(entry->clockid, &time.it_value);
	if (timerfd_settime(fd, flags, &time, NULL) < 0)
		return fail_errno(&restore->failure, errno, "timerfd-set", NULL, NULL, "cannot set the timer");
	if (entry->ticks && ioctl(fd, TFD_IOC_SET_TICKS, &entry->ticks) < 0)
		return fail_errno(&restore->failure, errno, "timerfd-set", NULL,
				  "the kernel needs CONFIG_CHECKPOINT_RESTORE",
				  "cannot set its %" PRIu64 " unread expirations", entry->ticks);
	return 0;
}

const struct fd_kind timerfd_kind = {
	.name = "timerfd",
	.type = FD_TYPES__TIMERFD,
	.match = timerfd_match,
	.dump = timerfd_dump,
	.open = timerfd_open,
	.finish = timerfd_finish,
};
