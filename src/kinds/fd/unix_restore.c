/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unix sockets: the restore.
 *
 * open     makes the sockets, connected pairs at once: one end's owner makes both and offers the other. Pairs come
 *          from socketpair(), except where one end shares a listener's name, as accepted sockets do: that end is
 *          accepted again, from a listener that lives only for it.
 * connect  binds the names that others can use and listens: by now nobody needs them for a moment any more. Queues of
 *          connected sockets are filled from their other end.
 * finish   every name of the tree is there: datagram sockets connect to them, clients connect to listeners that had
 *          not accepted them; queues of datagrams from various senders are filled; shutdown() comes last, because
 *          nothing can be sent after it.
 *
 * What SO_PEERCRED will say is taken from the process that calls socketpair(), listen() or connect(): users and
 * groups are right, because the process takes on each end's identity for the call; the pid is that of the end's owner
 * that made the pair.
 */
#include "kinds/fd/unix_restore.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fdinfo.h"
#include "kinds/fd/socket_options.h"
#include "kinds/fd/socket_queue.h"
#include "kinds/fd/unix_name.h"

#include <uthash.h>

/* How the other end comes to be. */
enum unix_link {
	LINK_NONE,
	LINK_PAIR,    /* connected to each other */
	LINK_CLOSED,  /* the other end is gone */
	LINK_PENDING, /* a client that its listener has not accepted */
	LINK_NAMED,   /* a datagram socket that sends to a name */
};

struct unix_name_use {
	unsigned count;
	bool has_listener;
	UT_hash_handle hh;
};

/* restore_file.kind_data */
struct unix_socket {
	uint32_t inode;
	struct restore_file *file;
	const UnixSkEntry *entry;
	enum unix_link link;
	struct unix_socket *peer;
	struct unix_name_use *name_use;
	bool shares_name;     /* the name is a listener's: nobody else may find it under it */
	bool is_connected_to; /* by name: its file must be found even if it has none in the file system */
	int made_fd;          /* made by this process together with its peer; -1 = not */
	int sender_fd;        /* LINK_CLOSED: the other end, until the queue is filled; -1 = none */
	UT_hash_handle hh;
};

struct unix_restore_state {
	struct unix_socket *by_inode;
	struct unix_name_use *names;
	struct socket_queues *queues;
	struct unix_private_root root;
};

static struct unix_restore_state *restore_state(struct restore *restore)
{
	void **state = restore_kind_state(restore, &unix_kind);

	if (!*state) {
		struct unix_restore_state *new_state = arena_alloc(&restore->arena, sizeof(*new_state));
		new_state->root = (struct unix_private_root)UNIX_PRIVATE_ROOT_INIT;
		*state = new_state;
	}
	return *state;
}

static bool is_owned(const struct unix_socket *socket)
{
	return socket->file->user_count > 0;
}

static bool is_outside(const struct unix_socket *socket)
{
	return socket->entry->uflags & UNIX_OUTSIDE;
}

static bool is_stream(const struct unix_socket *socket)
{
	return socket->entry->type != SOCK_DGRAM;
}

static bool is_connected(const struct unix_socket *socket)
{
	return socket->link == LINK_PAIR || socket->link == LINK_CLOSED;
}

/* ---- prepare ---- */

static int bad_entry(struct restore *restore, const UnixSkEntry *entry, const char *what)
{
	return fail(&restore->failure, EINVAL, "image-unix", NULL, NULL, "files.img: unix socket %u: %s", entry->id,
		    what);
}

static int check_entry(struct restore *restore, const UnixSkEntry *entry)
{
	if (!entry)
		return fail(&restore->failure, EINVAL, "image-unix", NULL, NULL,
			    "files.img: a unix socket's entry is empty");
	if (entry->type != SOCK_STREAM && entry->type != SOCK_DGRAM && entry->type != SOCK_SEQPACKET)
		return bad_entry(restore, entry, "its type is none of stream, datagram, seqpacket");
	if (entry->state != TCP_ESTABLISHED && entry->state != TCP_CLOSE && entry->state != TCP_LISTEN)
		return bad_entry(restore, entry, "its state is none of established, closed, listening");
	if (entry->state == TCP_LISTEN && (!entry->name.len || entry->type == SOCK_DGRAM))
		return bad_entry(restore, entry, "it cannot listen");
	if (entry->has_shutdown && entry->shutdown > SK_SHUTDOWN__BOTH)
		return bad_entry(restore, entry, "its shutdown state does not exist");
	return unix_name_check(restore, entry);
}

static void count_name(struct restore *restore, struct unix_socket *socket)
{
	const UnixSkEntry *entry = socket->entry;
	struct unix_restore_state *state = restore_state(restore);
	const char *directory = entry->name_dir ? entry->name_dir : "";
	size_t directory_length = strlen(directory) + 1, length = directory_length + entry->name.len + 1;
	char *key = arena_alloc(&restore->arena, length);

	memcpy(key, directory, directory_length);
	memcpy(key + directory_length, entry->name.data, entry->name.len);
	key[length - 1] = entry->type;
	HASH_FIND(hh, state->names, key, length, socket->name_use);
	if (!socket->name_use) {
		socket->name_use = arena_alloc(&restore->arena, sizeof(*socket->name_use));
		HASH_ADD_KEYPTR(hh, state->names, key, length, socket->name_use);
	}
	socket->name_use->count++;
	socket->name_use->has_listener |= entry->state == TCP_LISTEN;
}

static int add_socket(struct restore *restore, struct restore_file *file)
{
	struct unix_restore_state *state = restore_state(restore);
	int error = check_entry(restore, file->entry->usk);

	if (error < 0)
		return error;
	struct unix_socket *known, *socket = arena_alloc(&restore->arena, sizeof(*socket));
	file->kind_data = socket;
	socket->file = file;
	socket->entry = file->entry->usk;
	socket->inode = socket->entry->ino;
	socket->made_fd = socket->sender_fd = -1;
	if (is_outside(socket) && is_owned(socket))
		return bad_entry(restore, socket->entry, "it is marked as outside the tree, but a task has it");
	HASH_FIND(hh, state->by_inode, &socket->inode, sizeof(socket->inode), known);
	if (known)
		return bad_entry(restore, socket->entry, "another entry has the same inode");
	HASH_ADD(hh, state->by_inode, inode, sizeof(socket->inode), socket);
	if (socket->entry->name.len && !is_outside(socket))
		count_name(restore, socket);
	return 0;
}

static int link_to_peer(struct restore *restore, struct unix_socket *socket)
{
	const struct unix_socket *peer = socket->peer;

	if (is_stream(socket) && peer->entry->state == TCP_LISTEN && peer->entry->type == socket->entry->type &&
	    !is_outside(peer)) {
		socket->link = LINK_PENDING;
	} else if (peer != socket && peer->entry->peer == socket->inode && peer->entry->type == socket->entry->type &&
		   !is_outside(peer)) {
		socket->link = LINK_PAIR;
	} else if (!is_stream(socket) && !is_stream(peer) && peer->entry->name.len) {
		socket->link = LINK_NAMED;
	} else {
		return bad_entry(restore, socket->entry, "it cannot be connected to the peer that is named");
	}
	if (socket->link != LINK_PAIR)
		socket->peer->is_connected_to = true;
	return 0;
}

static int link_socket(struct restore *restore, struct unix_socket *socket)
{
	struct unix_restore_state *state = restore_state(restore);
	const UnixSkEntry *entry = socket->entry;
	int error = 0;

	if (is_outside(socket) || entry->state == TCP_LISTEN)
		return 0;
	if (entry->peer) {
		HASH_FIND(hh, state->by_inode, &entry->peer, sizeof(entry->peer), socket->peer);
		error = socket->peer ? link_to_peer(restore, socket)
				     : bad_entry(restore, entry, "its peer is not in the images");
	} else if (entry->state == TCP_ESTABLISHED) {
		socket->link = LINK_CLOSED;
	}
	socket->shares_name = is_stream(socket) && is_connected(socket) && socket->name_use &&
			      (socket->name_use->has_listener || socket->name_use->count > 1);
	return error;
}

int unix_prepare(struct restore *restore)
{
	struct unix_restore_state *state = restore_state(restore);
	int error = socket_queues_read(restore, &state->queues);

	for (size_t i = 0; i < restore->file_count && !error; i++)
		if (restore->files[i]->kind == &unix_kind)
			error = add_socket(restore, restore->files[i]);
	for (struct unix_socket *socket = state->by_inode; socket && !error; socket = socket->hh.next)
		error = link_socket(restore, socket);
	return error;
}

/* ---- open ---- */

static int assume_owner(struct restore *restore, const struct unix_socket *socket)
{
	const CoreEntry *core = socket && is_owned(socket) ? socket->file->users[0]->task->core : NULL;
	const CredsEntry *creds = core && core->thread_core ? core->thread_core->creds : NULL;

	return creds ? restore_assume_identity(restore, creds->euid, creds->egid) : 0;
}

static int new_socket(struct restore *restore, const struct unix_socket *like, int *ret_fd)
{
	int fd = socket(AF_UNIX, like->entry->type | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return fail_errno(&restore->failure, errno, "unix-socket", NULL, NULL, "cannot make a unix socket");
	*ret_fd = fd;
	return 0;
}

/* A name that nobody shall find: in the private root, which leaves only the string. */
static int bind_privately(struct restore *restore, const struct unix_socket *socket, int fd, int *ret_path_fd)
{
	struct unix_restore_state *state = restore_state(restore);
	const UnixSkEntry *entry = socket->entry;
	char name[160];
	int error = unix_name_is_path(entry) ? unix_private_root_enter(restore, &state->root) : 0;

	if (error < 0)
		return error;
	int result = unix_private_root_bind(fd, entry->name.data, entry->name.len, ret_path_fd);
	if (unix_name_is_path(entry))
		unix_private_root_leave(&state->root);
	if (result < 0)
		return fail_errno(&restore->failure, result, "unix-name", unix_name_show(entry, name, sizeof(name)),
				  result == -EADDRINUSE ? "end the program that has the name" : NULL,
				  "cannot have its name for a moment");
	return 0;
}

static int connect_as(struct restore *restore, const struct unix_socket *client, int fd, int path_fd,
		      const struct unix_socket *server)
{
	int error = assume_owner(restore, client);

	if (error < 0)
		return error;
	int result = path_fd >= 0 ? unix_name_connect_file(fd, path_fd) : unix_name_connect(restore, fd, server->entry);
	restore_drop_identity(restore);
	/* The permissions of the socket's file may have changed since the program connected. */
	if (result == -EACCES || result == -EPERM)
		result = path_fd >= 0 ? unix_name_connect_file(fd, path_fd)
				      : unix_name_connect(restore, fd, server->entry);
	return result;
}

static int listen_as(struct restore *restore, const struct unix_socket *server, int fd, int backlog)
{
	int error = assume_owner(restore, server);

	if (error < 0)
		return error;
	int result = listen(fd, backlog) < 0 ? -errno : 0;
	restore_drop_identity(restore);
	return result < 0 ? fail_errno(&restore->failure, result, "unix-listen", NULL, NULL, "cannot listen") : 0;
}

/* Accepts one connection from a listener that has the server's name; inside restore_lock(). */
static int accept_again(struct restore *restore, const struct unix_socket *server, const struct unix_socket *client,
			int *ret_server_fd, int *ret_client_fd)
{
	_cleanup_fd_ int listener = -1, path_fd = -1, client_path_fd = -1, client_fd = -1;
	int error = new_socket(restore, server, &listener);

	if (!error)
		error = new_socket(restore, server, &client_fd);
	if (!error)
		error = bind_privately(restore, server, listener, &path_fd);
	if (!error && client && unix_name_is_path(client->entry))
		error = bind_privately(restore, client, client_fd, &client_path_fd);
	if (!error)
		error = listen_as(restore, server, listener, 1);
	if (error < 0)
		return error;
	error = connect_as(restore, client, client_fd, path_fd, server);
	int fd = error ? -1 : accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return fail_errno(&restore->failure, error ? error : errno, "unix-connect", NULL, NULL,
				  "cannot connect the two ends again");
	*ret_server_fd = fd;
	*ret_client_fd = TAKE_FD(client_fd);
	return 0;
}

static int plain_pair(struct restore *restore, const struct unix_socket *socket, int *ret_fd, int *ret_peer_fd)
{
	struct unix_socket *ends[] = {(struct unix_socket *)socket, socket->peer};
	int fds[2], error = assume_owner(restore, socket);

	if (error < 0)
		return error;
	int result = socketpair(AF_UNIX, socket->entry->type | SOCK_CLOEXEC, 0, fds) < 0 ? -errno : 0;
	restore_drop_identity(restore);
	if (result < 0)
		return fail_errno(&restore->failure, result, "unix-socket", NULL, NULL,
				  "cannot make a pair of unix sockets");
	for (int i = 0; i < 2 && !error; i++) {
		_cleanup_fd_ int path_fd = -1;
		if (ends[i] && is_stream(ends[i]) && unix_name_is_path(ends[i]->entry))
			error = bind_privately(restore, ends[i], fds[i], &path_fd);
	}
	if (error < 0) {
		close(fds[0]);
		close(fds[1]);
		return error;
	}
	*ret_fd = fds[0];
	*ret_peer_fd = fds[1];
	return 0;
}

static int make_pair(struct restore *restore, const struct unix_socket *socket, int *ret_fd, int *ret_peer_fd)
{
	int error;

	if (!socket->shares_name && !(socket->peer && socket->peer->shares_name))
		return plain_pair(restore, socket, ret_fd, ret_peer_fd);
	restore_lock(restore);
	if (socket->shares_name)
		error = accept_again(restore, socket, socket->peer, ret_fd, ret_peer_fd);
	else
		error = accept_again(restore, socket->peer, socket, ret_peer_fd, ret_fd);
	restore_unlock(restore);
	return error;
}

static int set_up(struct restore *restore, const struct unix_socket *socket, int fd)
{
	int error = socket_options_restore(restore, fd, socket->entry->opts);

	return error ? error : status_flags_restore(restore, fd, socket->entry->flags);
}

static bool is_maker(const struct unix_socket *socket)
{
	if (is_owned(socket) != is_owned(socket->peer))
		return is_owned(socket);
	return socket->file->id < socket->peer->file->id;
}

/* Whoever opens the peer finds it: in this process, or as an offer. */
static int give_peer(struct restore *restore, struct unix_socket *peer, int fd)
{
	if (!is_owned(peer) || peer->file->users[0]->task != restore->self)
		return restore_offer(restore, peer->file->id, fd);
	int error = restore_park(restore, &fd);
	if (!error)
		peer->made_fd = fd;
	return error;
}

static int open_pair(struct restore *restore, struct unix_socket *socket, int *ret_fd)
{
	int peer_fd;

	if (socket->made_fd >= 0) {
		*ret_fd = TAKE_FD(socket->made_fd);
		return 0;
	}
	if (!is_maker(socket))
		return restore_take_offer(restore, socket->file->id, ret_fd);
	int error = make_pair(restore, socket, ret_fd, &peer_fd);
	if (error < 0)
		return error;
	error = set_up(restore, socket, *ret_fd);
	if (!error)
		error = set_up(restore, socket->peer, peer_fd);
	return error ? error : give_peer(restore, socket->peer, peer_fd);
}

static int open_closed(struct restore *restore, struct unix_socket *socket, int *ret_fd)
{
	int error = make_pair(restore, socket, ret_fd, &socket->sender_fd);

	if (!error)
		error = set_up(restore, socket, *ret_fd);
	return error ? error : restore_park(restore, &socket->sender_fd);
}

static int open_single(struct restore *restore, struct unix_socket *socket, int *ret_fd)
{
	int error = new_socket(restore, socket, ret_fd);

	return error ? error : set_up(restore, socket, *ret_fd);
}

int unix_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	struct unix_socket *socket = file->kind_data;
	char name[160];
	int error;

	if (socket->link == LINK_PAIR)
		error = open_pair(restore, socket, ret_fd);
	else if (socket->link == LINK_CLOSED)
		error = open_closed(restore, socket, ret_fd);
	else
		error = open_single(restore, socket, ret_fd);
	/* One that is in flight has no owner who would run the later steps. */
	if (!error && !is_owned(socket))
		error = unix_connect(restore, file, *ret_fd);
	if (!error && !is_owned(socket))
		error = unix_finish(restore, file, *ret_fd);
	return error < 0 && error != -ECANCELED
		       ? fail_in(&restore->failure, "%s", unix_name_show(socket->entry, name, sizeof(name)))
		       : error;
}

/* ---- connect ---- */

static int bind_found(struct restore *restore, const struct unix_socket *socket, int fd)
{
	const UnixSkEntry *entry = socket->entry;
	_cleanup_fd_ int path_fd = -1;
	int error;

	/* A connected stream's path is only a string, given in open. */
	if (!entry->name.len || (is_stream(socket) && is_connected(socket) && unix_name_is_path(entry)) ||
	    socket->shares_name)
		return 0;
	if (!entry->deleted || !unix_name_is_path(entry)) {
		restore_lock(restore);
		error = unix_name_bind(restore, fd, entry);
		restore_unlock(restore);
		return error;
	}
	error = bind_privately(restore, socket, fd, &path_fd);
	if (!error)
		error = unix_name_apply_perms(restore, entry, path_fd);
	/* For those who connect to it, and for the one who fills its queue. */
	if (!error && (socket->is_connected_to || !is_connected(socket)))
		error = restore_offer(restore, socket->file->id, TAKE_FD(path_fd));
	return error;
}

static int fill(struct restore *restore, const struct unix_socket *receiver, int fd)
{
	struct unix_restore_state *state = restore_state(restore);
	const struct socket_queue *queue = socket_queues_find(state->queues, receiver->file->id);

	return queue ? socket_queue_fill(restore, state->queues, queue, fd) : 0;
}

/* Each end's owner fills the other's queue; where nobody owns an end, the other's owner does both. */
static int fill_pair(struct restore *restore, struct unix_socket *socket, int fd)
{
	_cleanup_fd_ int peer_fd = -1;
	int error = 0;

	if (is_owned(socket) || !is_owned(socket->peer))
		error = fill(restore, socket->peer, fd);
	if (error || !is_owned(socket) || is_owned(socket->peer))
		return error;
	error = restore_take_offer(restore, socket->peer->file->id, &peer_fd);
	return error ? error : fill(restore, socket, peer_fd);
}

int unix_connect(struct restore *restore, struct restore_file *file, int fd)
{
	struct unix_socket *socket = file->kind_data;
	char name[160];
	int error = bind_found(restore, socket, fd);

	if (!error && socket->entry->state == TCP_LISTEN)
		error = listen_as(restore, socket, fd, socket->entry->backlog);
	if (!error && socket->link == LINK_PAIR)
		error = fill_pair(restore, socket, fd);
	if (!error && socket->link == LINK_CLOSED) {
		error = fill(restore, socket, socket->sender_fd);
		close_fd_pointer(&socket->sender_fd);
		socket->sender_fd = -1;
	}
	return error < 0 && error != -ECANCELED
		       ? fail_in(&restore->failure, "%s", unix_name_show(socket->entry, name, sizeof(name)))
		       : error;
}

/* ---- finish ---- */

/* The file of a bound socket; -1 for an abstract name. */
static int open_file(struct restore *restore, const struct unix_socket *target, int *ret_fd)
{
	*ret_fd = -1;
	if (!unix_name_is_path(target->entry))
		return 0;
	if (target->entry->deleted && !is_outside(target))
		return restore_take_offer(restore, target->file->id, ret_fd);
	return unix_name_open(restore, target->entry, ret_fd);
}

static int connect_by_name(struct restore *restore, struct unix_socket *socket, int fd)
{
	_cleanup_fd_ int path_fd = -1;
	char name[160];
	unsigned credentials = socket_credentials_suspend(fd);
	int error = open_file(restore, socket->peer, &path_fd);

	if (error < 0)
		return error;
	/* A listener whose queue is full must not make us wait for a program that does not run yet. */
	if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return fail_errno(&restore->failure, errno, "unix-connect", NULL, NULL, "cannot set O_NONBLOCK");
	int result = connect_as(restore, socket, fd, path_fd, socket->peer);
	socket_credentials_resume(fd, credentials);
	error = status_flags_restore(restore, fd, socket->entry->flags);
	if (result < 0)
		return fail_errno(&restore->failure, result, "unix-connect", NULL,
				  is_outside(socket->peer) ? "start the service that has this name before the restore"
							   : NULL,
				  "cannot connect to %s", unix_name_show(socket->peer->entry, name, sizeof(name)));
	return error;
}

static socklen_t address_of(const UnixSkEntry *entry, int path_fd, struct sockaddr_un *ret_address)
{
	memset(ret_address, 0, sizeof(*ret_address));
	ret_address->sun_family = AF_UNIX;
	if (path_fd >= 0)
		return offsetof(struct sockaddr_un, sun_path) + 1 +
		       snprintf(ret_address->sun_path, sizeof(ret_address->sun_path), "/proc/self/fd/%d", path_fd);
	memcpy(ret_address->sun_path, entry->name.data, entry->name.len);
	return offsetof(struct sockaddr_un, sun_path) + entry->name.len;
}

/* The datagram socket of the tree with an abstract name, or NULL. */
static struct unix_socket *find_sender(const struct unix_restore_state *state, const void *name, size_t length)
{
	for (struct unix_socket *socket = state->by_inode; socket; socket = socket->hh.next)
		if (!is_stream(socket) && is_owned(socket) && socket->entry->name.len == length &&
		    !memcmp(socket->entry->name.data, name, length))
			return socket;
	return NULL;
}

/*
 * A socket that sends under the name of the packet's sender: a new one with that name, or the one of the tree that
 * has it, or one without a name.
 */
static int open_sender(struct restore *restore, const struct socket_queue_packet *packet,
		       const struct unix_socket *receiver, int *ret_fd)
{
	struct unix_restore_state *state = restore_state(restore);
	_cleanup_fd_ int fd = -1, path_fd = -1;
	bool is_path = packet->sender_length && *(const char *)packet->sender;
	int result = 0, error = new_socket(restore, receiver, &fd);

	if (!error && is_path)
		error = unix_private_root_enter(restore, &state->root);
	if (error < 0)
		return error;
	if (packet->sender_length)
		result = unix_private_root_bind(fd, packet->sender, packet->sender_length, &path_fd);
	if (is_path)
		unix_private_root_leave(&state->root);
	struct unix_socket *sender =
		result == -EADDRINUSE ? find_sender(state, packet->sender, packet->sender_length) : NULL;
	if (sender)
		return restore_take_file(restore, sender->file->id, ret_fd);
	if (result < 0)
		log_warn("a datagram in the queue of unix socket %u loses its sender's name: %s", receiver->inode,
			 strerror(-result));
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int send_datagram(struct restore *restore, const struct unix_socket *receiver,
			 const struct socket_queue_packet *packet, const struct sockaddr_un *address, socklen_t length)
{
	struct unix_restore_state *state = restore_state(restore);
	_cleanup_fd_ int fd = -1;
	int error = open_sender(restore, packet, receiver, &fd);

	if (error < 0)
		return error;
	struct socket_queue_room room = socket_queue_make_room(fd);
	error = socket_queue_send(restore, state->queues, packet, fd, address, length);
	socket_queue_end_room(&room);
	return error;
}

/* Datagrams that came from anywhere. */
static int fill_datagrams(struct restore *restore, const struct unix_socket *receiver, const struct socket_queue *queue)
{
	_cleanup_fd_ int path_fd = -1;
	struct sockaddr_un address;
	int error = open_file(restore, receiver, &path_fd);

	if (error < 0)
		return error;
	if (!receiver->entry->name.len)
		return fail(&restore->failure, EINVAL, "image-unix", NULL, NULL,
			    "its queue cannot be filled: it has neither a name nor another end");
	socklen_t length = address_of(receiver->entry, path_fd, &address);
	for (const struct socket_queue_packet *packet = queue->first; packet && !error; packet = packet->next) {
		/* Names and buffers of senders are borrowed; a file in flight may need the lock to be opened. */
		bool locked = packet->sender_length && !packet->file_count;
		if (locked)
			restore_lock(restore);
		error = send_datagram(restore, receiver, packet, &address, length);
		if (locked)
			restore_unlock(restore);
	}
	return error;
}

static int fill_unconnected(struct restore *restore, const struct unix_socket *socket)
{
	struct unix_restore_state *state = restore_state(restore);
	const struct socket_queue *queue = socket_queues_find(state->queues, socket->file->id);

	return queue && !is_stream(socket) && !is_connected(socket) ? fill_datagrams(restore, socket, queue) : 0;
}

int unix_finish(struct restore *restore, struct restore_file *file, int fd)
{
	struct unix_socket *socket = file->kind_data;
	char name[160];
	int error = fill_unconnected(restore, socket);

	if (!error && (socket->link == LINK_NAMED || socket->link == LINK_PENDING))
		error = connect_by_name(restore, socket, fd);
	/* SHUT_RD, SHUT_WR, SHUT_RDWR are one less than the image's; a closed peer has done it already. */
	if (!error && socket->entry->has_shutdown && socket->entry->shutdown &&
	    shutdown(fd, socket->entry->shutdown - 1) < 0 && errno != ENOTCONN)
		error = fail_errno(&restore->failure, errno, "unix-shutdown", NULL, NULL, "cannot shut it down");
	return error < 0 && error != -ECANCELED
		       ? fail_in(&restore->failure, "%s", unix_name_show(socket->entry, name, sizeof(name)))
		       : error;
}
