/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queues of unix sockets.
 *
 * The queue is read with MSG_PEEK, which leaves it as it is; SO_PEEK_OFF moves the place where the next peek begins.
 * A peek gives descriptors in flight as new descriptors of ours, each time it touches the piece they are attached to:
 * so a stream is read with a buffer for all of it, and each answer ends where a piece with descriptors ends. Packets
 * are read whole for the same reason, again with more room if they did not fit.
 *
 * To be filled again, a queue is sent from the other end. The sender pays for what waits, so its buffer is made large
 * before and small after, and nothing is ever waited for: a reader may not run yet.
 */
#include "kinds/fd/socket_queue.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <uthash.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/socket_options.h"

#include "sk-packet.pb-c.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72
#endif

enum {
	MAX_RIGHTS = 253, /* the kernel's SCM_MAX_FD */
	CONTROL_BYTES = 4096,
	FIRST_BUFFER_BYTES = 64 << 10,
	MAX_PACKET_BYTES = 1 << 30,
};

/* ---- dump ---- */

struct peek {
	struct dump *dump;
	struct socket_queue_writer *writer;
	struct dump_file *file;
	int fd, type;
	char *buffer;
	size_t buffer_size;
	uint64_t done_bytes, waiting_bytes;
	bool is_shut;
};

/* One answer of recvmsg(). */
struct peeked {
	size_t length;
	int flags;
	struct sockaddr_un sender;
	socklen_t sender_length;
	int fds[MAX_RIGHTS];
	size_t fd_count;
	bool has_credentials;
	struct ucred credentials;
};

bool socket_queue_is_filled(int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN | POLLRDHUP};
	int waiting = 0;

	/* The end of a stream is readable, too: then the count of bytes says more. */
	if (poll(&poll_fd, 1, 0) <= 0 || !(poll_fd.revents & POLLIN))
		return false;
	return !(poll_fd.revents & POLLRDHUP) || ioctl(fd, SIOCINQ, &waiting) < 0 || waiting > 0;
}

static void close_all(const int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++)
		close(fds[i]);
}

static void take_control(struct msghdr *message, struct peeked *ret_peeked)
{
	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
		size_t length = part->cmsg_len - CMSG_LEN(0);
		if (part->cmsg_level != SOL_SOCKET)
			continue;
		if (part->cmsg_type == SCM_RIGHTS && length <= sizeof(ret_peeked->fds)) {
			memcpy(ret_peeked->fds, CMSG_DATA(part), length);
			ret_peeked->fd_count = length / sizeof(int);
		} else if (part->cmsg_type == SCM_CREDENTIALS && length >= sizeof(ret_peeked->credentials)) {
			memcpy(&ret_peeked->credentials, CMSG_DATA(part), sizeof(ret_peeked->credentials));
			ret_peeked->has_credentials = ret_peeked->credentials.pid > 0;
		} else if (part->cmsg_type == 4 /* SCM_PIDFD */ && length == sizeof(int)) {
			int pidfd;
			memcpy(&pidfd, CMSG_DATA(part), sizeof(pidfd));
			close(pidfd);
		}
	}
}

/* Returns 1 with an answer, 0 at the end of the queue, -errno. */
static int peek_once(const struct peek *peek, struct peeked *ret_peeked)
{
	char control[CONTROL_BYTES] __attribute__((aligned(8)));
	struct iovec part = {peek->buffer, peek->buffer_size};
	struct msghdr message = {.msg_name = &ret_peeked->sender,
				 .msg_namelen = sizeof(ret_peeked->sender),
				 .msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	int flags = MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC;
	ssize_t length = recvmsg(peek->fd, &message, flags);

	if (length < 0)
		return errno == EAGAIN ? 0 : -errno;
	/* Nothing at the end of a queue that can get no more; anywhere else it is a packet of no bytes. */
	if (!length && (peek->type == SOCK_STREAM || peek->is_shut))
		return 0;
	ret_peeked->length = length;
	ret_peeked->flags = message.msg_flags;
	ret_peeked->sender_length = message.msg_namelen;
	ret_peeked->fd_count = 0;
	ret_peeked->has_credentials = false;
	take_control(&message, ret_peeked);
	return 1;
}

static int identify_rights(const struct peek *peek, const struct peeked *peeked, SkPacketEntry *entry)
{
	struct dump *dump = peek->dump;
	ScmEntry *scm = arena_message(&dump->arena, ScmEntry, scm_entry);

	scm->type = SCM_RIGHTS;
	scm->n_rights = peeked->fd_count;
	scm->rights = arena_alloc(&dump->arena, peeked->fd_count * sizeof(*scm->rights));
	entry->n_scm = 1;
	entry->scm = arena_memdup(&dump->arena, &scm, sizeof(scm));
	for (size_t i = 0; i < peeked->fd_count; i++) {
		struct dump_file *file;
		int error = dump_file_identify(dump, peek->file->task, -1, peeked->fds[i], &file);
		if (error < 0) {
			fail_in(&dump->failure, "a descriptor in flight in its queue");
			return error;
		}
		scm->rights[i] = file->id;
	}
	return 0;
}

static void add_extensions(const struct peek *peek, const struct peeked *peeked, SkPacketEntry *entry)
{
	struct arena *arena = &peek->dump->arena;
	size_t family = offsetof(struct sockaddr_un, sun_path);

	if (peek->dump->options->format_plain)
		return;
	if (peek->type == SOCK_DGRAM && peeked->sender_length > family &&
	    peeked->sender_length <= sizeof(peeked->sender)) {
		entry->has_sender = true;
		entry->sender.len = peeked->sender_length - family;
		entry->sender.data = arena_memdup(arena, peeked->sender.sun_path, entry->sender.len);
	}
	if (peeked->has_credentials) {
		entry->credentials = arena_message(arena, SkCredentialsEntry, sk_credentials_entry);
		entry->credentials->pid = peeked->credentials.pid;
		entry->credentials->uid = peeked->credentials.uid;
		entry->credentials->gid = peeked->credentials.gid;
	}
}

static int write_packet(struct peek *peek, const struct peeked *peeked, const char *data)
{
	struct dump *dump = peek->dump;
	SkPacketEntry entry = SK_PACKET_ENTRY__INIT;
	int error = peeked->fd_count ? identify_rights(peek, peeked, &entry) : 0;

	entry.id_for = peek->file->id;
	entry.length = peeked->length;
	add_extensions(peek, peeked, &entry);
	if (!error && !peek->writer->image && !dump->only_explain)
		error = image_create(dump->images_dirfd, &dump->failure, IMAGE_SK_QUEUES, 0, &peek->writer->image);
	if (error < 0 || dump->only_explain)
		return error;
	error = image_write(peek->writer->image, &entry.base);
	if (!error)
		error = image_write_raw(peek->writer->image, data, peeked->length);
	return error;
}

static int set_peek_offset(const struct peek *peek, int offset)
{
	if (setsockopt(peek->fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset)) < 0)
		return fail_errno(&peek->dump->failure, errno, "socket-queue", NULL, NULL,
				  "cannot look further into the socket's queue");
	return 0;
}

static int enlarge(struct peek *peek)
{
	if (peek->buffer_size >= MAX_PACKET_BYTES)
		return fail(&peek->dump->failure, EFBIG, "socket-queue", NULL, NULL,
			    "a packet of more than %d bytes waits in the socket's queue", MAX_PACKET_BYTES);
	peek->buffer_size *= 4;
	peek->buffer = xrealloc_array(peek->buffer, peek->buffer_size, 1);
	return 0;
}

/*
 * Descriptors in a stream belong to the piece that was sent with them; an answer ends with that piece, but may begin
 * with others. Where it begins cannot be asked: even an answer of one byte tells of descriptors further on. But pieces
 * are copied whole or not at all, so a buffer whose last byte cannot be written stops the copy before the last piece.
 */
static int find_last_piece(const struct peek *peek, size_t length, size_t *ret_start)
{
	struct iovec parts[] = {{peek->buffer, length - 1}, {NULL, 1}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	int error = set_peek_offset(peek, peek->done_bytes);

	if (error < 0)
		return error;
	ssize_t start = recvmsg(peek->fd, &message, MSG_PEEK | MSG_DONTWAIT);
	if ((start < 0 && errno != EFAULT) || start >= (ssize_t)length)
		return fail_errno(&peek->dump->failure, start < 0 ? errno : EPROTO, "socket-queue", NULL, NULL,
				  "cannot find the piece of the queue that descriptors in flight belong to");
	*ret_start = start < 0 ? 0 : start;
	return set_peek_offset(peek, peek->done_bytes + length);
}

static int write_stream_rights(struct peek *peek, const struct peeked *peeked)
{
	struct peeked before = *peeked, piece = *peeked;
	size_t start = 0;
	int error = find_last_piece(peek, peeked->length, &start);

	if (error < 0)
		return error;
	before.length = start;
	before.fd_count = 0;
	piece.length = peeked->length - start;
	if (start)
		error = write_packet(peek, &before, peek->buffer);
	return error ? error : write_packet(peek, &piece, peek->buffer + start);
}

/* Peeks from the start to the end of the queue; SO_PEEK_OFF is 0. */
static int peek_all(struct peek *peek)
{
	struct failure *failure = &peek->dump->failure;
	struct peeked peeked;

	for (;;) {
		int result = peek_once(peek, &peeked);
		if (result < 0)
			return fail_errno(failure, result, "socket-queue", NULL, NULL,
					  "cannot look into the socket's queue");
		if (!result)
			return 0;
		if (peeked.flags & MSG_CTRUNC)
			result = fail(failure, EMFILE, "socket-queue-rights", NULL,
				      "raise the limit of open files of criu",
				      "the descriptors in flight in the socket's queue could not be taken");
		else if (!(peeked.flags & MSG_TRUNC))
			result = peek->type == SOCK_STREAM && peeked.fd_count
					 ? write_stream_rights(peek, &peeked)
					 : write_packet(peek, &peeked, peek->buffer);
		close_all(peeked.fds, peeked.fd_count);
		if (result < 0)
			return result;
		if (peeked.flags & MSG_TRUNC) {
			result = enlarge(peek);
			if (!result)
				result = set_peek_offset(peek, peek->done_bytes);
			if (result < 0)
				return result;
			continue;
		}
		peek->done_bytes += peeked.length;
	}
}

static int check_all_was_seen(const struct peek *peek)
{
	if (peek->type != SOCK_STREAM || peek->done_bytes == peek->waiting_bytes)
		return 0;
	return fail(&peek->dump->failure, EOPNOTSUPP, "socket-queue-urgent", NULL,
		    "let the program read its urgent data (MSG_OOB) before the dump",
		    "%lu of the %lu bytes in the socket's queue can be seen", peek->done_bytes, peek->waiting_bytes);
}

int socket_queue_dump(struct dump *dump, struct socket_queue_writer *writer, struct dump_file *file, int fd)
{
	struct peek peek = {.dump = dump, .writer = writer, .file = file, .fd = fd};
	socklen_t type_length = sizeof(peek.type), offset_length = sizeof(int);
	int waiting = 0, offset = -1;

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &peek.type, &type_length) < 0 || ioctl(fd, SIOCINQ, &waiting) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, &offset_length) < 0)
		return fail_errno(&dump->failure, errno, "socket-queue", NULL, NULL,
				  "cannot look into the socket's queue");
	/* An empty packet can be looked at once; the kernel does not show it again. That once belongs to a dump. */
	if (dump->only_explain && peek.type != SOCK_STREAM)
		return 0;
	struct pollfd poll_fd = {.fd = fd, .events = POLLRDHUP};
	peek.is_shut = poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & POLLRDHUP);
	peek.waiting_bytes = waiting;
	peek.buffer_size = peek.waiting_bytes + 1 > FIRST_BUFFER_BYTES ? peek.waiting_bytes + 1 : FIRST_BUFFER_BYTES;
	peek.buffer = xcalloc(1, peek.buffer_size);
	int error = set_peek_offset(&peek, 0);
	if (!error) {
		error = peek_all(&peek);
		setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset));
	}
	if (!error)
		error = check_all_was_seen(&peek);
	free(peek.buffer);
	return error;
}

int socket_queue_writer_close(struct dump *dump, struct socket_queue_writer *writer)
{
	char name[64];

	if (writer->image)
		return image_close(&writer->image);
	if (!dump->only_explain)
		unlinkat(dump->images_dirfd, image_name(IMAGE_SK_QUEUES, 0, name, sizeof(name)), 0);
	return 0;
}

/* ---- restore ---- */

struct queue_row {
	struct socket_queue queue;
	UT_hash_handle hh;
};

struct socket_queues {
	struct queue_row *rows;
	bool holds_unowned; /* files that only queues have */
	bool unowned_are_open;
};

static int read_rights(struct restore *restore, struct socket_queues *queues, const SkPacketEntry *entry,
		       struct socket_queue_packet *packet)
{
	for (size_t i = 0; i < entry->n_scm; i++) {
		const ScmEntry *scm = entry->scm[i];
		if (scm->type != SCM_RIGHTS || packet->file_count || scm->n_rights > MAX_RIGHTS)
			return fail(&restore->failure, EINVAL, "image-socket-queue", "sk-queues.img", NULL,
				    "a packet of socket %u has control data that cannot be sent (type %u, %zu entries)",
				    entry->id_for, scm->type, scm->n_rights);
		for (size_t j = 0; j < scm->n_rights; j++) {
			const struct restore_file *file = restore_find_file(restore, scm->rights[j]);
			if (!file)
				return fail(&restore->failure, EINVAL, "image-socket-queue", "sk-queues.img", NULL,
					    "a packet of socket %u holds file %u, which is not in files.img",
					    entry->id_for, scm->rights[j]);
			queues->holds_unowned |= !file->user_count;
		}
		packet->file_count = scm->n_rights;
		packet->files = arena_memdup(&restore->arena, scm->rights, scm->n_rights * sizeof(*scm->rights));
	}
	return 0;
}

static void append(struct restore *restore, struct socket_queues *queues, uint32_t id,
		   struct socket_queue_packet *packet)
{
	struct queue_row *row;

	HASH_FIND(hh, queues->rows, &id, sizeof(id), row);
	if (!row) {
		row = arena_alloc(&restore->arena, sizeof(*row));
		row->queue.id = id;
		HASH_ADD(hh, queues->rows, queue.id, sizeof(row->queue.id), row);
	}
	if (row->queue.last)
		row->queue.last->next = packet;
	else
		row->queue.first = packet;
	row->queue.last = packet;
}

static int read_packet(struct restore *restore, struct socket_queues *queues, struct image *image,
		       const SkPacketEntry *entry)
{
	struct socket_queue_packet *packet = arena_alloc(&restore->arena, sizeof(*packet));
	struct stat stat;
	int error = read_rights(restore, queues, entry, packet);

	if (error < 0)
		return error;
	if (fstat(image_fd(image), &stat) < 0 || entry->length > stat.st_size)
		return fail(&restore->failure, EINVAL, "image-socket-queue", "sk-queues.img", NULL,
			    "a packet of %u bytes is longer than the file", entry->length);
	void *data = arena_alloc(&restore->arena, entry->length);
	error = image_read_raw(image, data, entry->length);
	if (error < 0)
		return error;
	packet->data = data;
	packet->length_bytes = entry->length;
	if (entry->has_sender && entry->sender.len <= sizeof(((struct sockaddr_un *)0)->sun_path)) {
		packet->sender = arena_memdup(&restore->arena, entry->sender.data, entry->sender.len);
		packet->sender_length = entry->sender.len;
	}
	if (entry->credentials && entry->credentials->pid <= INT_MAX) {
		packet->has_credentials = true;
		packet->pid = entry->credentials->pid;
		packet->uid = entry->credentials->uid;
		packet->gid = entry->credentials->gid;
	}
	append(restore, queues, entry->id_for, packet);
	return 0;
}

int socket_queues_read(struct restore *restore, struct socket_queues **ret_queues)
{
	struct socket_queues *queues = arena_alloc(&restore->arena, sizeof(*queues));
	struct image *image;
	int error = restore_image_open(restore, IMAGE_SK_QUEUES, 0, &image);

	if (error == -ENOENT && !failure_is_set(&restore->failure)) {
		*ret_queues = queues;
		return 0;
	}
	if (error < 0)
		return error;
	for (;;) {
		ProtobufCMessage *message;
		error = image_read(image, &message);
		if (error <= 0)
			break;
		error = read_packet(restore, queues, image, (const SkPacketEntry *)message);
		image_message_free(message);
		if (error < 0)
			break;
	}
	image_close(&image);
	if (!error)
		*ret_queues = queues;
	return error;
}

const struct socket_queue *socket_queues_find(struct socket_queues *queues, uint32_t id)
{
	struct queue_row *row;

	HASH_FIND(hh, queues->rows, &id, sizeof(id), row);
	return row ? &row->queue : NULL;
}

static bool is_in_flight(const struct socket_queues *queues, uint32_t id)
{
	for (const struct queue_row *row = queues->rows; row; row = row->hh.next)
		for (const struct socket_queue_packet *packet = row->queue.first; packet; packet = packet->next)
			for (size_t i = 0; i < packet->file_count; i++)
				if (packet->files[i] == id)
					return true;
	return false;
}

/*
 * Files that only queues have are opened in ascending id by whoever comes first, before any queue is filled: one may
 * wait for another (the two ends of a pipe), and queues are not filled in the order of what they hold.
 */
static int open_unowned(struct restore *restore, struct socket_queues *queues)
{
	if (!queues->holds_unowned || queues->unowned_are_open)
		return 0;
	queues->unowned_are_open = true;
	for (size_t i = 0; i < restore->file_count; i++) {
		const struct restore_file *file = restore->files[i];
		if (file->user_count || !is_in_flight(queues, file->id))
			continue;
		_cleanup_fd_ int fd = -1;
		int error = restore_open_unowned(restore, file->id, &fd);
		if (error < 0)
			return error;
	}
	return 0;
}

static int get_rights(struct restore *restore, struct socket_queues *queues, const struct socket_queue_packet *packet,
		      int *fds)
{
	int error = packet->file_count ? open_unowned(restore, queues) : 0;

	for (size_t i = 0; i < packet->file_count && !error; i++) {
		const struct restore_file *file = restore_find_file(restore, packet->files[i]);
		error = file->user_count ? restore_take_file(restore, file->id, &fds[i])
					 : restore_open_unowned(restore, file->id, &fds[i]);
		if (error < 0)
			close_all(fds, i);
	}
	return error;
}

static void add_control(struct msghdr *message, int type, const void *data, size_t size)
{
	struct cmsghdr *part = (struct cmsghdr *)((char *)message->msg_control + message->msg_controllen);

	part->cmsg_level = SOL_SOCKET;
	part->cmsg_type = type;
	part->cmsg_len = CMSG_LEN(size);
	memcpy(CMSG_DATA(part), data, size);
	message->msg_controllen += CMSG_SPACE(size);
}

static int send_refused(struct restore *restore, const struct socket_queue_packet *packet, int error)
{
	if (error == EAGAIN || error == ENOBUFS || error == EMSGSIZE)
		return fail_errno(&restore->failure, error, "socket-queue-full", NULL,
				  "raise net.core.wmem_max and net.unix.max_dgram_qlen to what they were at the dump",
				  "a packet of %zu bytes does not fit into the socket's queue again",
				  packet->length_bytes);
	return fail_errno(&restore->failure, error, "socket-queue", NULL, NULL,
			  "cannot put a packet of %zu bytes back into the socket's queue", packet->length_bytes);
}

static int send_all(struct restore *restore, const struct socket_queue_packet *packet, int fd, struct msghdr *message)
{
	size_t done = 0;
	ssize_t count;

	do {
		struct iovec part = {(char *)packet->data + done, packet->length_bytes - done};
		message->msg_iov = &part;
		message->msg_iovlen = 1;
		count = sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
		/* The sender named by the image may be gone: then it is us. */
		if (count < 0 && (errno == ESRCH || errno == EPERM) && packet->has_credentials &&
		    message->msg_controllen >= CMSG_SPACE(sizeof(struct ucred))) {
			message->msg_controllen -= CMSG_SPACE(sizeof(struct ucred));
			if (!message->msg_controllen)
				message->msg_control = NULL;
			log_warn("the sender of a packet, pid %u, cannot be named again", packet->pid);
			count = sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
		}
		if (count < 0)
			return send_refused(restore, packet, errno);
		done += count;
		message->msg_control = NULL;
		message->msg_controllen = 0;
	} while (done < packet->length_bytes);
	return 0;
}

int socket_queue_send(struct restore *restore, struct socket_queues *queues, const struct socket_queue_packet *packet,
		      int fd, const struct sockaddr_un *address, size_t address_length)
{
	char control[CONTROL_BYTES] __attribute__((aligned(8))) = {};
	struct msghdr message = {.msg_name = (void *)address, .msg_namelen = address_length, .msg_control = control};
	struct ucred credentials = {.pid = packet->pid, .uid = packet->uid, .gid = packet->gid};
	int fds[MAX_RIGHTS];
	int error = get_rights(restore, queues, packet, fds);

	if (error < 0)
		return error;
	if (packet->file_count)
		add_control(&message, SCM_RIGHTS, fds, packet->file_count * sizeof(int));
	if (packet->has_credentials)
		add_control(&message, SCM_CREDENTIALS, &credentials, sizeof(credentials));
	if (!message.msg_controllen)
		message.msg_control = NULL;
	error = send_all(restore, packet, fd, &message);
	close_all(fds, packet->file_count);
	return error;
}

static void set_send_buffer(int fd, int bytes)
{
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)) < 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

struct socket_queue_room socket_queue_make_room(int fd)
{
	struct socket_queue_room room = {.fd = fd, .lock = -1};
	socklen_t length = sizeof(int);

	getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room.size_bytes, &length);
	getsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &room.lock, &length);
	room.credentials = socket_credentials_suspend(fd);
	set_send_buffer(fd, INT_MAX / 4);
	return room;
}

void socket_queue_end_room(const struct socket_queue_room *room)
{
	/* The kernel doubles what it is told. */
	set_send_buffer(room->fd, room->size_bytes / 2);
	if (room->lock >= 0)
		setsockopt(room->fd, SOL_SOCKET, SO_BUF_LOCK, &room->lock, sizeof(room->lock));
	socket_credentials_resume(room->fd, room->credentials);
}

int socket_queue_fill(struct restore *restore, struct socket_queues *queues, const struct socket_queue *queue, int fd)
{
	struct socket_queue_room room = socket_queue_make_room(fd);
	int error = 0;

	for (const struct socket_queue_packet *packet = queue->first; packet && !error; packet = packet->next)
		error = socket_queue_send(restore, queues, packet, fd, NULL, 0);
	socket_queue_end_room(&room);
	return error;
}
