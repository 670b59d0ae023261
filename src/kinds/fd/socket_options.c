/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of SOL_SOCKET, one row each.
 *
 * The kernel gives buffer sizes doubled and takes them single, and remembers that somebody set them (which ends TCP's
 * automatic sizes): so the lock bits are set last. Options that a family lacks fail with EOPNOTSUPP or ENOPROTOOPT
 * and are simply not in the entry. A filter is given as the classic BPF program it was attached as; one that was
 * attached as eBPF cannot be had.
 */
#include "kinds/fd/socket_options.h"

#include <linux/filter.h>
#include <linux/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/option_table.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif

enum option_use {
	OPTION_ALWAYS,    /* in the entry whenever the socket has it */
	OPTION_IF_SET,    /* in the entry when it is not 0 */
	OPTION_READ_ONLY, /* old images have it here, new ones elsewhere */
};

/* Every member is an int or unsigned of 32 bits. */
struct option_row {
	const char *name;
	int level, option;
	size_t has_offset, value_offset;
	enum option_use use;
	bool privileged; /* a refusal is a warning */
};

#define ROW(option, member, ...)                                                                                 \
	{                                                                                                        \
#option, SOL_SOCKET, option, offsetof(SkOptsEntry, has_##member), offsetof(SkOptsEntry, member), \
			__VA_ARGS__                                                                              \
	}
#define TCP_ROW(option, member)                                                                                   \
	{                                                                                                         \
#option, IPPROTO_TCP, option, offsetof(SkOptsEntry, has_##member), offsetof(SkOptsEntry, member), \
			OPTION_READ_ONLY, false                                                                   \
	}

static const struct option_row rows[] = {
	ROW(SO_REUSEADDR, reuseaddr, OPTION_ALWAYS, false),
	ROW(SO_REUSEPORT, so_reuseport, OPTION_ALWAYS, false),
	ROW(SO_PRIORITY, so_priority, OPTION_ALWAYS, true),
	ROW(SO_RCVLOWAT, so_rcvlowat, OPTION_ALWAYS, false),
	ROW(SO_MARK, so_mark, OPTION_IF_SET, true),
	ROW(SO_PASSCRED, so_passcred, OPTION_ALWAYS, false),
	ROW(SO_PASSSEC, so_passsec, OPTION_ALWAYS, false),
	ROW(SO_DONTROUTE, so_dontroute, OPTION_ALWAYS, false),
	ROW(SO_NO_CHECK, so_no_check, OPTION_ALWAYS, false),
	ROW(SO_BROADCAST, so_broadcast, OPTION_ALWAYS, false),
	ROW(SO_KEEPALIVE, so_keepalive, OPTION_ALWAYS, false),
	ROW(SO_OOBINLINE, so_oobinline, OPTION_ALWAYS, false),
	TCP_ROW(TCP_KEEPCNT, tcp_keepcnt),
	TCP_ROW(TCP_KEEPIDLE, tcp_keepidle),
	TCP_ROW(TCP_KEEPINTVL, tcp_keepintvl),
};

static int get_int(int fd, int level, int option, int *ret_value)
{
	socklen_t length = sizeof(*ret_value);

	return getsockopt(fd, level, option, ret_value, &length) < 0 ? -errno : 0;
}

static bool option_is_absent(int error)
{
	return error == -EOPNOTSUPP || error == -ENOPROTOOPT;
}

static int dump_rows(struct dump *dump, int fd, SkOptsEntry *options)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		int value;
		if (rows[i].use == OPTION_READ_ONLY)
			continue;
		int error = get_int(fd, rows[i].level, rows[i].option, &value);
		if (option_is_absent(error))
			continue;
		if (error < 0)
			return fail_errno(&dump->failure, error, "socket-option", NULL, NULL,
					  "cannot read the socket option %s", rows[i].name);
		if (!value && rows[i].use == OPTION_IF_SET)
			continue;
		*(protobuf_c_boolean *)((char *)options + rows[i].has_offset) = true;
		*(int *)((char *)options + rows[i].value_offset) = value;
	}
	return 0;
}

static int dump_buffers(struct dump *dump, int fd, SkOptsEntry *options)
{
	struct timeval send_timeout, receive_timeout;
	struct linger linger;
	socklen_t time_length = sizeof(struct timeval), linger_length = sizeof(linger);
	int lock;

	if (get_int(fd, SOL_SOCKET, SO_SNDBUF, (int *)&options->so_sndbuf) < 0 ||
	    get_int(fd, SOL_SOCKET, SO_RCVBUF, (int *)&options->so_rcvbuf) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &send_timeout, &time_length) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &receive_timeout, &time_length) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &linger_length) < 0)
		return fail_errno(&dump->failure, errno, "socket-option", NULL, NULL,
				  "cannot read the socket's buffer sizes and timeouts");
	options->so_snd_tmo_sec = send_timeout.tv_sec;
	options->so_snd_tmo_usec = send_timeout.tv_usec;
	options->so_rcv_tmo_sec = receive_timeout.tv_sec;
	options->so_rcv_tmo_usec = receive_timeout.tv_usec;
	options->has_so_linger = linger.l_onoff;
	options->so_linger = linger.l_linger;
	options->has_so_buf_lock = !get_int(fd, SOL_SOCKET, SO_BUF_LOCK, &lock);
	options->so_buf_lock = options->has_so_buf_lock ? lock : 0;
	return 0;
}

static int dump_bound_device(struct dump *dump, int fd, SkOptsEntry *options)
{
	char device[IFNAMSIZ + 1] = "";
	socklen_t length = IFNAMSIZ;

	if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, &length) < 0) {
		if (option_is_absent(-errno))
			return 0;
		return fail_errno(&dump->failure, errno, "socket-option", NULL,
				  "the network device it was bound to may be gone",
				  "cannot read the socket option SO_BINDTODEVICE");
	}
	if (length && device[0])
		options->so_bound_dev = arena_strdup(&dump->arena, device);
	return 0;
}

static uint64_t pack_instruction(const struct sock_filter *instruction)
{
	return (uint64_t)instruction->code << 48 | (uint64_t)instruction->jt << 40 | (uint64_t)instruction->jf << 32 |
	       instruction->k;
}

static struct sock_filter unpack_instruction(uint64_t packed)
{
	return (struct sock_filter){.code = packed >> 48, .jt = packed >> 40, .jf = packed >> 32, .k = packed};
}

static int dump_filter(struct dump *dump, int fd, SkOptsEntry *options)
{
	socklen_t count = 0; /* instructions, not bytes */

	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, NULL, &count) < 0) {
		if (errno == EACCES)
			return fail(&dump->failure, EOPNOTSUPP, "socket-ebpf-filter", NULL,
				    "its owner must detach the filter before the dump",
				    "an eBPF program is attached to the socket, and the kernel does not give it back");
		return option_is_absent(-errno) ? 0
						: fail_errno(&dump->failure, errno, "socket-option", NULL, NULL,
							     "cannot read the socket's filter");
	}
	if (!count)
		return 0;
	struct sock_filter *program = arena_alloc(&dump->arena, count * sizeof(*program));
	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, program, &count) < 0)
		return fail_errno(&dump->failure, errno, "socket-option", NULL, NULL,
				  "cannot read the socket's filter of %u instructions", count);
	options->so_filter = arena_alloc(&dump->arena, count * sizeof(*options->so_filter));
	options->n_so_filter = count;
	for (size_t i = 0; i < count; i++)
		options->so_filter[i] = pack_instruction(&program[i]);
	return 0;
}

int socket_options_dump(struct dump *dump, int fd, SkOptsEntry **ret_options)
{
	SkOptsEntry *options = arena_message(&dump->arena, SkOptsEntry, sk_opts_entry);
	int error = dump_buffers(dump, fd, options);

	if (!error)
		error = dump_rows(dump, fd, options);
	if (!error)
		error = dump_bound_device(dump, fd, options);
	if (!error)
		error = dump_filter(dump, fd, options);
	if (!error && !dump->options->format_plain)
		error = option_table_dump(dump, fd, options);
	if (!error)
		*ret_options = options;
	return error;
}

static int restore_rows(struct restore *restore, int fd, const SkOptsEntry *options)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		int current, value = *(const int *)((const char *)options + rows[i].value_offset);
		if (!*(const protobuf_c_boolean *)((const char *)options + rows[i].has_offset))
			continue;
		int error = get_int(fd, rows[i].level, rows[i].option, &current);
		if ((!error && current == value) || (option_is_absent(error) && !value))
			continue;
		if (!error && !setsockopt(fd, rows[i].level, rows[i].option, &value, sizeof(value)))
			continue;
		if (!error)
			error = -errno;
		if (!rows[i].privileged)
			return fail_errno(&restore->failure, error, "socket-option", NULL, NULL,
					  "cannot set the socket option %s to %d", rows[i].name, value);
		log_warn("socket option %s stays at %d instead of %d: %s", rows[i].name, current, value,
			 strerror(-error));
	}
	return 0;
}

static void restore_buffer(int fd, const char *name, int option, int forced_option, uint32_t wanted)
{
	/* The kernel doubles it; automatic sizes can be odd. */
	int current, half = wanted / 2 + wanted % 2;

	if (get_int(fd, SOL_SOCKET, option, &current) < 0 || (uint32_t)current == wanted)
		return;
	if (setsockopt(fd, SOL_SOCKET, forced_option, &half, sizeof(half)) < 0)
		setsockopt(fd, SOL_SOCKET, option, &half, sizeof(half));
	if (get_int(fd, SOL_SOCKET, option, &current) < 0 || (uint32_t)current < wanted)
		log_warn("the socket's %s stays at %d bytes instead of %u", name, current, wanted);
}

static int restore_timeout(struct restore *restore, int fd, int option, uint64_t seconds, uint64_t microseconds)
{
	struct timeval current, wanted = {.tv_sec = seconds, .tv_usec = microseconds};
	socklen_t length = sizeof(current);

	if (!getsockopt(fd, SOL_SOCKET, option, &current, &length) && current.tv_sec == wanted.tv_sec &&
	    current.tv_usec == wanted.tv_usec)
		return 0;
	if (setsockopt(fd, SOL_SOCKET, option, &wanted, sizeof(wanted)) < 0)
		return fail_errno(&restore->failure, errno, "socket-option", NULL, NULL,
				  "cannot set the socket's timeout to %lu.%06lu s", seconds, microseconds);
	return 0;
}

static int restore_buffers(struct restore *restore, int fd, const SkOptsEntry *options)
{
	struct linger linger = {.l_onoff = 1, .l_linger = options->so_linger};
	int lock, wanted_lock = options->so_buf_lock;

	restore_buffer(fd, "send buffer", SO_SNDBUF, SO_SNDBUFFORCE, options->so_sndbuf);
	restore_buffer(fd, "receive buffer", SO_RCVBUF, SO_RCVBUFFORCE, options->so_rcvbuf);
	if (options->has_so_buf_lock && !get_int(fd, SOL_SOCKET, SO_BUF_LOCK, &lock) && lock != wanted_lock &&
	    setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &wanted_lock, sizeof(wanted_lock)) < 0)
		log_warn("the socket's buffer sizes stay fixed: %s", strerror(errno));
	if (options->has_so_linger && setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) < 0)
		return fail_errno(&restore->failure, errno, "socket-option", NULL, NULL,
				  "cannot set the socket option SO_LINGER to %u s", options->so_linger);
	int error = restore_timeout(restore, fd, SO_SNDTIMEO, options->so_snd_tmo_sec, options->so_snd_tmo_usec);
	if (!error)
		error = restore_timeout(restore, fd, SO_RCVTIMEO, options->so_rcv_tmo_sec, options->so_rcv_tmo_usec);
	return error;
}

static int restore_filter(struct restore *restore, int fd, const SkOptsEntry *options)
{
	struct sock_filter instructions[BPF_MAXINSNS];
	struct sock_fprog program = {.len = options->n_so_filter, .filter = instructions};

	if (!options->n_so_filter)
		return 0;
	if (options->n_so_filter > BPF_MAXINSNS)
		return fail(&restore->failure, EINVAL, "image-socket-filter", NULL, NULL,
			    "a socket filter of %zu instructions is too long", options->n_so_filter);
	for (size_t i = 0; i < options->n_so_filter; i++)
		instructions[i] = unpack_instruction(options->so_filter[i]);
	if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) < 0)
		return fail_errno(&restore->failure, errno, "socket-option", NULL, NULL,
				  "cannot attach the socket's filter of %zu instructions", options->n_so_filter);
	return 0;
}

int socket_options_restore(struct restore *restore, int fd, const SkOptsEntry *options)
{
	const char *device = options->so_bound_dev;
	int error = restore_buffers(restore, fd, options);

	if (!error)
		error = restore_rows(restore, fd, options);
	if (error < 0)
		return error;
	if (device && device[0] && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device) + 1) < 0)
		return fail_errno(&restore->failure, errno, "socket-option", NULL,
				  "make the network device before the restore",
				  "cannot bind the socket to device \"%s\"", device);
	error = option_table_restore(&restore->failure, fd, OPTION_LATE, options->n_more_options,
				     options->more_options);
	if (!error)
		error = restore_filter(restore, fd, options);
	return error ? error
		     : option_table_restore(&restore->failure, fd, OPTION_LAST, options->n_more_options,
					    options->more_options);
}

static const int credential_options[] = {SO_PASSCRED, OPTION_SO_PASSPIDFD};

unsigned socket_credentials_suspend(int fd)
{
	unsigned suspended = 0;
	int value, off = 0;

	for (size_t i = 0; i < ARRAY_SIZE(credential_options); i++)
		if (get_int(fd, SOL_SOCKET, credential_options[i], &value) == 0 && value &&
		    !setsockopt(fd, SOL_SOCKET, credential_options[i], &off, sizeof(off)))
			suspended |= 1U << i;
	return suspended;
}

void socket_credentials_resume(int fd, unsigned suspended)
{
	int on = 1;

	for (size_t i = 0; i < ARRAY_SIZE(credential_options); i++)
		if (suspended & 1U << i)
			setsockopt(fd, SOL_SOCKET, credential_options[i], &on, sizeof(on));
}
