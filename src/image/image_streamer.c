/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every request is u32 length and message; what comes back is read with a limit. The byte that carries a descriptor
 * means nothing.
 *
 * On restore the processes of the tree ask over one connection, each for what it opens. A request, its answer and the
 * file must not mix with those of others: whoever asks holds the lock of the directory that the files are brought into.
 * It is taken through a new open file, so that it works between threads and processes alike and ends with its holder.
 */
#include "image/image_streamer.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"

#include "img-streamer.pb-c.h"

enum {
	REQUEST_LIMIT_BYTES = 512,
	ANSWER_LIMIT_BYTES = 512,
	PIPE_BYTES = 1 << 20, /* the limit of who has no CAP_SYS_RESOURCE; the streamer makes it larger if it wants */
};

struct image_streamer {
	int fd;
};

static const char object[] = "image streamer";
static const char temporary_name[] = ".arriving";

static const char *const socket_names[] = {
	[IMAGE_STREAMER_CAPTURE] = "streamer-capture.sock",
	[IMAGE_STREAMER_SERVE] = "streamer-serve.sock",
};

static const char *const commands[] = {
	[IMAGE_STREAMER_CAPTURE] = "start the streamer first: criu-image-streamer --images-dir DIR capture",
	[IMAGE_STREAMER_SERVE] = "start the streamer first: criu-image-streamer --images-dir DIR serve",
};

/* ---- the connection ---- */

int image_streamer_connect(int images_dirfd, enum image_streamer_side side, struct failure *failure,
			   struct image_streamer **ret_streamer)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	/* The directory's own path may be too long for an address. */
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", images_dirfd, socket_names[side]);
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail_errno(failure, errno, "image-streamer", object, NULL, "cannot make a socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		if (errno == ENOENT)
			return fail(failure, ENOENT, "image-streamer", object, commands[side],
				    "there is no %s in the images directory", socket_names[side]);
		if (errno == ECONNREFUSED)
			return fail(failure, ECONNREFUSED, "image-streamer", object, commands[side],
				    "nobody listens at %s in the images directory", socket_names[side]);
		return fail_errno(failure, errno, "image-streamer", object, NULL, "cannot connect to %s",
				  socket_names[side]);
	}
	struct image_streamer *streamer = xcalloc(1, sizeof(*streamer));
	streamer->fd = TAKE_FD(fd);
	*ret_streamer = streamer;
	return 0;
}

void image_streamer_close(struct image_streamer **streamer)
{
	if (!*streamer)
		return;
	close_fd_pointer(&(*streamer)->fd);
	free(*streamer);
	*streamer = NULL;
}

int image_streamer_move(struct image_streamer *streamer, int (*move)(void *context, int *fd), void *context)
{
	return move(context, &streamer->fd);
}

bool image_streamer_is_there(const struct image_streamer *streamer)
{
	char byte;
	ssize_t count = recv(streamer->fd, &byte, sizeof(byte), MSG_PEEK | MSG_DONTWAIT);

	return count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR));
}

int image_streamer_gone(struct failure *failure, const char *name)
{
	return fail(failure, EPIPE, "image-streamer-gone", object, "its own messages tell why",
		    name ? "it has ended before all of %s was through" : "it has ended or hung up", name);
}

static int fail_link(struct failure *failure, int error)
{
	if (error == -EPIPE || error == -ECONNRESET || error == -ENODATA)
		return image_streamer_gone(failure, NULL);
	return fail_errno(failure, error, "image-streamer", object, NULL, "the connection to it has failed");
}

/* ---- messages ---- */

static int send_whole(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = send(fd, (const char *)data + done, size - done, MSG_NOSIGNAL);
		if (count < 0 && errno != EINTR)
			return -errno;
		done += count < 0 ? 0 : count;
	}
	return 0;
}

static int send_request(const struct image_streamer *streamer, const char *name)
{
	ImgStreamerRequestEntry request = IMG_STREAMER_REQUEST_ENTRY__INIT;
	uint8_t packed[sizeof(uint32_t) + REQUEST_LIMIT_BYTES];

	request.filename = (char *)name;
	uint32_t size = img_streamer_request_entry__get_packed_size(&request);
	if (size > REQUEST_LIMIT_BYTES)
		return -ENAMETOOLONG;
	memcpy(packed, &size, sizeof(size));
	img_streamer_request_entry__pack(&request, packed + sizeof(size));
	return send_whole(streamer->fd, packed, sizeof(size) + size);
}

static int send_descriptor(const struct image_streamer *streamer, int fd)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec dummy = {.iov_base = "", .iov_len = 1};
	struct msghdr message = {
		.msg_iov = &dummy,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.bytes),
	};
	ssize_t count;

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	do
		count = sendmsg(streamer->fd, &message, MSG_NOSIGNAL);
	while (count < 0 && errno == EINTR);
	return count < 0 ? -errno : 0;
}

static int read_answer(const struct image_streamer *streamer, struct failure *failure, bool *ret_exists)
{
	uint8_t packed[ANSWER_LIMIT_BYTES];
	uint32_t size;
	int error = read_full(streamer->fd, &size, sizeof(size));

	if (!error && size > sizeof(packed))
		return fail(failure, EPROTO, "image-streamer-answer", object, NULL,
			    "an answer of %u bytes is longer than the limit of %zu", size, sizeof(packed));
	if (!error)
		error = read_full(streamer->fd, packed, size);
	if (error < 0)
		return fail_link(failure, error);
	ImgStreamerReplyEntry *answer = img_streamer_reply_entry__unpack(NULL, size, packed);
	if (!answer)
		return fail(failure, EPROTO, "image-streamer-answer", object,
			    "is it an image streamer that listens in the images directory?",
			    "its answer of %u bytes cannot be understood", size);
	*ret_exists = answer->exists;
	img_streamer_reply_entry__free_unpacked(answer, NULL);
	return 0;
}

/* ---- dump ---- */

int image_streamer_create(struct image_streamer *streamer, const char *name, struct failure *failure, int *ret_fd)
{
	int pipe_fds[2];

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return fail_errno(failure, errno, "image-streamer", object, NULL, "cannot make a pipe");
	_cleanup_fd_ int reading = pipe_fds[0], writing = pipe_fds[1];
	int error = fcntl(writing, F_SETFL, O_NONBLOCK) < 0 ? -errno : send_request(streamer, name);
	if (!error)
		error = send_descriptor(streamer, reading);
	if (error < 0)
		return fail_link(failure, error);
	*ret_fd = TAKE_FD(writing);
	return 0;
}

/* ---- restore ---- */

/* Unlocked when the descriptor is closed. */
static int lock_directory(int dirfd, struct failure *failure, int *ret_lock)
{
	_cleanup_fd_ int lock = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (lock < 0)
		return fail_errno(failure, errno, "image-streamer", object, NULL, "no descriptor left for a lock");
	while (flock(lock, LOCK_EX) < 0)
		if (errno != EINTR)
			return fail_errno(failure, errno, "image-streamer", object, NULL, "cannot lock the images");
	*ret_lock = TAKE_FD(lock);
	return 0;
}

static int copy_from_pipe(int from, int to, const char *name, struct failure *failure)
{
	for (;;) {
		ssize_t count = splice(from, NULL, to, NULL, PIPE_BYTES, SPLICE_F_MOVE);
		if (!count)
			return 0;
		if (count < 0 && errno != EINTR)
			return fail_errno(failure, errno, "image-streamer", name,
					  errno == ENOSPC || errno == ENOMEM
						  ? "a restore from a streamer needs memory for the images too"
						  : NULL,
					  "cannot be brought into memory");
	}
}

static int receive(const struct image_streamer *streamer, int to, const char *name, struct failure *failure)
{
	int pipe_fds[2];

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return fail_errno(failure, errno, "image-streamer", object, NULL, "cannot make a pipe");
	_cleanup_fd_ int reading = pipe_fds[0];
	/* Advice only. */
	fcntl(reading, F_SETPIPE_SZ, PIPE_BYTES);
	int error = send_descriptor(streamer, pipe_fds[1]);
	/* Ours would keep the file from ending. */
	close(pipe_fds[1]);
	return error ? fail_link(failure, error) : copy_from_pipe(reading, to, name, failure);
}

static int is_here(int dirfd, const char *name)
{
	return !faccessat(dirfd, name, F_OK, 0);
}

/* A file has its name when it is complete: others look without the lock. */
static int bring(const struct image_streamer *streamer, int dirfd, const char *name, struct failure *failure)
{
	bool exists = false;
	int error = send_request(streamer, name);

	if (error < 0)
		return fail_link(failure, error);
	error = read_answer(streamer, failure, &exists);
	if (error < 0 || !exists)
		return error;
	_cleanup_fd_ int fd = openat(dirfd, temporary_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail_errno(failure, errno, "image-streamer", name, NULL, "cannot make the file in memory");
	error = receive(streamer, fd, name, failure);
	if (!error && renameat(dirfd, temporary_name, dirfd, name) < 0)
		error = fail_errno(failure, errno, "image-streamer", name, NULL, "cannot name the file in memory");
	return error;
}

int image_streamer_fetch(struct image_streamer *streamer, int dirfd, const char *name, struct failure *failure)
{
	_cleanup_fd_ int lock = -1;

	if (is_here(dirfd, name))
		return 0;
	int error = lock_directory(dirfd, failure, &lock);
	if (error < 0 || is_here(dirfd, name))
		return error;
	return bring(streamer, dirfd, name, failure);
}

int image_streamer_check(struct image_streamer *streamer, int dirfd, struct failure *failure)
{
	_cleanup_fd_ int lock = -1;
	bool exists;
	int error = lock_directory(dirfd, failure, &lock);

	if (error < 0)
		return error;
	error = send_request(streamer, "inventory.img");
	return error ? fail_link(failure, error) : read_answer(streamer, failure, &exists);
}
