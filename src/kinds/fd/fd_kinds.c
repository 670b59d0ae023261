/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/fd/fd_kind.h"

#include "base/fd.h"

extern const struct fd_kind unix_kind;
extern const struct fd_kind netlink_kind;
extern const struct fd_kind inet_kind;
extern const struct fd_kind pipe_kind;
extern const struct fd_kind eventfd_kind;
extern const struct fd_kind signalfd_kind;
extern const struct fd_kind timerfd_kind;
extern const struct fd_kind epoll_kind;
extern const struct fd_kind pidfd_kind;
extern const struct fd_kind fifo_kind;
extern const struct fd_kind inotify_kind;
extern const struct fd_kind tty_kind;
extern const struct fd_kind memfd_kind;
extern const struct fd_kind regular_kind;
extern const struct fd_kind unsupported_kind;

const struct fd_kind *const fd_kinds[] = {
	/* First: its dump_finish finds descriptors in flight, which any of the others must know in theirs. */
	&unix_kind,     &netlink_kind, &inet_kind,        &pipe_kind,  &fifo_kind,    &eventfd_kind,
	&signalfd_kind, &timerfd_kind, &epoll_kind,       &pidfd_kind, &inotify_kind, &tty_kind,
	&memfd_kind,    &regular_kind, &unsupported_kind, NULL,
};

static size_t kind_index(const struct fd_kind *kind)
{
	size_t index = 0;

	while (fd_kinds[index] != kind)
		index++;
	return index;
}

void **dump_kind_state(struct dump *dump, const struct fd_kind *kind)
{
	if (!dump->kind_states)
		dump->kind_states = arena_alloc(&dump->arena, ARRAY_SIZE(fd_kinds) * sizeof(void *));
	return &dump->kind_states[kind_index(kind)];
}

void **restore_kind_state(struct restore *restore, const struct fd_kind *kind)
{
	if (!restore->kind_states)
		restore->kind_states = arena_alloc(&restore->arena, ARRAY_SIZE(fd_kinds) * sizeof(void *));
	return &restore->kind_states[kind_index(kind)];
}
