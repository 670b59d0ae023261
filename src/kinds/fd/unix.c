/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unix sockets: the dump, and the kind's operations.
 *
 * A socket by itself tells its name and options; who is connected to whom, and which connections wait for accept(),
 * only sock_diag tells, for a whole network namespace at once, by inode numbers of sockfs. A peer of inode 0 is one
 * that has no descriptor: it is closed, or it is the other end of a connection that nobody has accepted yet (then a
 * listener's list of waiting connections has our inode).
 *
 * dump() runs once per socket and only records; when every descriptor is known, dump_finish() copies the queues,
 * which may hold descriptors of sockets that are in no table and so become new rows here, and only then sees which
 * peers are inside the tree. So this kind is the first of the table: what it finds in flight may belong to any other
 * kind, whose dump_finish() must come later.
 */
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/socket_options.h"
#include "kinds/fd/socket_queue.h"
#include "kinds/fd/unix_diag.h"
#include "kinds/fd/unix_name.h"
#include "kinds/fd/unix_restore.h"

#include "sk-unix.pb-c.h"

enum { NETWORK_NAMESPACE_ID = 2 };

struct unix_dumped {
	uint32_t inode;
	struct dump_file *file;
	UnixSkEntry *entry;
	const struct unix_diag_socket *diag;
	bool queue_is_filled;
	UT_hash_handle hh;
};

/* A client whose connection waits in a listener's queue. */
struct unix_waiting {
	uint32_t inode;
	const struct unix_diag_socket *listener;
	UT_hash_handle hh;
};

struct unix_dump_state {
	struct unix_diag diag;
	struct unix_dumped **sockets;
	size_t count, capacity;
	struct unix_dumped *by_inode;
	struct unix_waiting *waiting;
	struct unix_dumped *outside; /* peers that will be connected to by name, by inode */
};

static struct unix_dump_state *dump_state(struct dump *dump)
{
	void **state = dump_kind_state(dump, &unix_kind);

	if (!*state)
		*state = arena_alloc(&dump->arena, sizeof(struct unix_dump_state));
	return *state;
}

static bool unix_match(const struct target_fd *target)
{
	int domain;
	socklen_t length = sizeof(domain);

	return S_ISSOCK(target->stat.st_mode) && !(target->flags & O_PATH) &&
	       !getsockopt(target->fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) && domain == AF_UNIX;
}

/* Asked once for each network namespace, and again only for a socket that was not seen. */
static int find_diag(struct dump *dump, int fd, uint32_t inode, const struct unix_diag_socket **ret_socket)
{
	struct unix_dump_state *state = dump_state(dump);

	*ret_socket = unix_diag_find(&state->diag, inode);
	if (*ret_socket)
		return 0;
	int error = unix_diag_read(&state->diag, &dump->arena, &dump->failure, fd);
	if (error < 0)
		return error;
	*ret_socket = unix_diag_find(&state->diag, inode);
	return *ret_socket ? 0
			   : fail(&dump->failure, EOPNOTSUPP, "unix-diag", NULL,
				  "run criu where the socket's network namespace can be entered",
				  "the kernel does not list unix socket %u", inode);
}

static void fill_entry(const struct target_fd *target, const struct unix_diag_socket *diag, UnixSkEntry *entry)
{
	entry->id = target->file->id;
	entry->ino = target->stat.st_ino;
	entry->type = diag->type;
	entry->state = diag->state;
	/* A datagram socket's state only says that somebody has connected to it. */
	if (diag->type == SOCK_DGRAM)
		entry->state = diag->has_peer ? TCP_ESTABLISHED : TCP_CLOSE;
	entry->flags = target->flags;
	entry->backlog = diag->send_queue;
	entry->peer = diag->peer;
	entry->fown = target->fown;
	entry->has_shutdown = diag->shutdown;
	entry->shutdown = diag->shutdown;
	entry->has_ns_id = true;
	entry->ns_id = NETWORK_NAMESPACE_ID;
}

static int unix_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	struct unix_dump_state *state = dump_state(dump);
	struct unix_dumped *socket = arena_alloc(&dump->arena, sizeof(*socket));
	int error = find_diag(dump, target->fd, target->stat.st_ino, &socket->diag);

	if (error < 0)
		return error;
	entry->usk = socket->entry = arena_message(&dump->arena, UnixSkEntry, unix_sk_entry);
	fill_entry(target, socket->diag, entry->usk);
	error = socket_options_dump(dump, target->fd, &entry->usk->opts);
	if (!error)
		error = unix_name_dump(dump, target->task, target->fd, entry->usk);
	if (error < 0)
		return error;
	socket->inode = entry->usk->ino;
	socket->file = target->file;
	socket->queue_is_filled = socket->diag->state != TCP_LISTEN && socket_queue_is_filled(target->fd);
	ARRAY_GROW(state->sockets, state->count, state->capacity);
	state->sockets[state->count++] = socket;
	HASH_ADD(hh, state->by_inode, inode, sizeof(socket->inode), socket);
	return 0;
}

static struct unix_dumped *find_inside(struct unix_dump_state *state, uint32_t inode)
{
	struct unix_dumped *socket = NULL;

	if (inode)
		HASH_FIND(hh, state->by_inode, &inode, sizeof(inode), socket);
	return socket;
}

static int blame(struct dump *dump, const struct unix_dumped *socket)
{
	char name[160];

	fail_in(&dump->failure, "%s: %s", dump_fd_name(dump, socket->file->task, socket->file->number),
		unix_name_show(socket->entry, name, sizeof(name)));
	return dump_blocked(dump);
}

static int dump_queue(struct dump *dump, struct socket_queue_writer *writer, const struct unix_dumped *socket)
{
	_cleanup_fd_ int fd = -1;
	int error = dump_file_get(dump, socket->file, &fd);

	return error ? error : socket_queue_dump(dump, writer, socket->file, fd);
}

/* Queues may add sockets to the end of the list. */
static int dump_queues(struct dump *dump, struct unix_dump_state *state)
{
	struct socket_queue_writer writer = {};
	int error = 0;

	for (size_t i = 0; i < state->count && !error; i++) {
		if (!state->sockets[i]->queue_is_filled)
			continue;
		error = dump_queue(dump, &writer, state->sockets[i]);
		if (error < 0)
			error = blame(dump, state->sockets[i]);
	}
	int close_error = socket_queue_writer_close(dump, &writer);
	return error ? error : close_error;
}

static int outside_failure(struct dump *dump, uint32_t inode, const char *what)
{
	char owner[96];

	return fail(&dump->failure, EOPNOTSUPP, "unix-peer-outside", NULL,
		    "dump it too, or close the connection before the dump", "%s, %s, is outside the tree", what,
		    unix_diag_owner(inode, owner, sizeof(owner)));
}

/* Connections that nobody has accepted, of all listeners of the namespace. */
static void collect_waiting(struct dump *dump, struct unix_dump_state *state)
{
	for (const struct unix_diag_socket *listener = state->diag.sockets; listener; listener = listener->hh.next) {
		for (size_t i = 0; i < listener->waiting_count; i++) {
			struct unix_waiting *known, *waiting;
			if (!listener->waiting[i])
				continue;
			waiting = arena_alloc(&dump->arena, sizeof(*waiting));
			waiting->inode = listener->waiting[i];
			waiting->listener = listener;
			HASH_REPLACE(hh, state->waiting, inode, sizeof(waiting->inode), waiting, known);
		}
	}
}

static int check_listener(struct dump *dump, struct unix_dump_state *state, const struct unix_dumped *socket)
{
	size_t gone = 0;

	for (size_t i = 0; i < socket->diag->waiting_count; i++) {
		uint32_t client = socket->diag->waiting[i];
		gone += !client;
		if (client && !find_inside(state, client))
			return outside_failure(dump, client, "the client of a connection that waits for accept()");
	}
	if (gone)
		log_warn("unix socket %u: %zu connections that nobody accepted, and whose clients are gone, are lost",
			 socket->inode, gone);
	return 0;
}

/* A stream whose other end has no descriptor: closed, or not accepted yet. */
static int check_half_made(struct dump *dump, struct unix_dump_state *state, struct unix_dumped *socket)
{
	struct unix_waiting *waiting;

	HASH_FIND(hh, state->waiting, &socket->inode, sizeof(socket->inode), waiting);
	if (!waiting)
		return 0;
	if (!find_inside(state, waiting->listener->inode))
		return outside_failure(dump, waiting->listener->inode, "the listener, which has not accepted it yet");
	if (socket->diag->send_queue)
		return fail(&dump->failure, EOPNOTSUPP, "unix-not-accepted", NULL,
			    "let the server accept the connection before the dump",
			    "data was sent (%u bytes with overhead) on a connection that nobody has accepted yet, and "
			    "cannot be seen from outside",
			    socket->diag->send_queue);
	socket->entry->peer = waiting->listener->inode;
	return 0;
}

static bool name_can_be_reached(const struct unix_diag_socket *peer)
{
	return peer->name_length && (!peer->name[0] || peer->name[0] == '/');
}

/* A datagram socket that sends to a service (/dev/log): it will be connected to the same name again. */
static int add_outside(struct dump *dump, struct unix_dump_state *state, const struct unix_diag_socket *peer)
{
	struct unix_dumped *outside;

	HASH_FIND(hh, state->outside, &peer->inode, sizeof(peer->inode), outside);
	if (outside)
		return 0;
	struct dump_file *file = dump_file_add(dump, &unix_kind);
	UnixSkEntry *entry = arena_message(&dump->arena, UnixSkEntry, unix_sk_entry);
	file->entry->type = FD_TYPES__UNIXSK;
	file->entry->usk = entry;
	entry->id = file->id;
	entry->ino = peer->inode;
	entry->type = peer->type;
	entry->state = peer->state;
	entry->flags = O_RDWR;
	entry->uflags = UNIX_OUTSIDE;
	entry->fown = arena_message(&dump->arena, FownEntry, fown_entry);
	entry->opts = arena_message(&dump->arena, SkOptsEntry, sk_opts_entry);
	entry->name.len = peer->name_length;
	entry->name.data = (uint8_t *)peer->name;
	entry->has_ns_id = true;
	entry->ns_id = NETWORK_NAMESPACE_ID;
	outside = arena_alloc(&dump->arena, sizeof(*outside));
	outside->inode = peer->inode;
	outside->entry = entry;
	HASH_ADD(hh, state->outside, inode, sizeof(outside->inode), outside);
	return 0;
}

static int check_peer(struct dump *dump, struct unix_dump_state *state, const struct unix_dumped *socket)
{
	const struct unix_dumped *peer = find_inside(state, socket->entry->peer);
	const struct unix_diag_socket *outside = unix_diag_find(&state->diag, socket->entry->peer);

	if (!peer && socket->entry->type == SOCK_DGRAM && outside && name_can_be_reached(outside) &&
	    outside->peer != socket->inode)
		return add_outside(dump, state, outside);
	if (!peer)
		return outside_failure(dump, socket->entry->peer, "the peer");
	if (socket->entry->type == SOCK_DGRAM && !peer->entry->name.len && peer->entry->peer != socket->inode)
		return fail(&dump->failure, EOPNOTSUPP, "unix-peer-unnamed", NULL,
			    "close or connect the other end before the dump",
			    "it sends to a socket without a name that is not connected back");
	return 0;
}

static int check_socket(struct dump *dump, struct unix_dump_state *state, struct unix_dumped *socket)
{
	if (socket->diag->state == TCP_LISTEN)
		return check_listener(dump, state, socket);
	if (socket->entry->peer)
		return check_peer(dump, state, socket);
	return socket->diag->has_peer ? check_half_made(dump, state, socket) : 0;
}

static int unix_dump_finish(struct dump *dump)
{
	struct unix_dump_state *state = dump_state(dump);
	int error = dump_queues(dump, state);

	if (error < 0)
		return error;
	collect_waiting(dump, state);
	for (size_t i = 0; i < state->count; i++) {
		error = check_socket(dump, state, state->sockets[i]);
		if (error < 0)
			error = blame(dump, state->sockets[i]);
		if (error < 0)
			return error;
	}
	return 0;
}

static void unix_dump_release(struct dump *dump, bool tree_is_gone)
{
	struct unix_dump_state *state = dump_state(dump);

	/* The elements are the arena's. */
	HASH_CLEAR(hh, state->by_inode);
	HASH_CLEAR(hh, state->waiting);
	HASH_CLEAR(hh, state->outside);
	HASH_CLEAR(hh, state->diag.sockets);
	free(state->sockets);
	state->sockets = NULL;
	state->count = state->capacity = 0;
}

const struct fd_kind unix_kind = {
	.name = "unix socket",
	.type = FD_TYPES__UNIXSK,
	.match = unix_match,
	.dump = unix_dump,
	.dump_finish = unix_dump_finish,
	.dump_release = unix_dump_release,
	.prepare = unix_prepare,
	.open = unix_open,
	.connect = unix_connect,
	.finish = unix_finish,
};
