/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stopped program does not stop its connections: the kernel goes on to acknowledge what arrives and to send what is
 * queued. A byte that arrives after the queue was read would be acknowledged and lost. So connections with a peer
 * outside the tree are locked first, all in one transaction, and then read. Packets that had passed the lock's hook a
 * moment before may still be on their way to the socket, so whatever changed after it was read is read again.
 *
 * A connection with both ends in the tree needs no lock: neither program can send, and reading the sending side of
 * both ends before the receiving side of either makes a pair that fits: what the kernel moved in between is in both
 * images, and counts as sent.
 *
 * While its queues are read, a socket is in repair mode for some microseconds, and a program that writes meanwhile
 * gets an error. So a child process of criu reads them: when criu is killed and the tree runs again, the child ends
 * the mode of its current socket and stops.
 *
 * What becomes of the lock: the tree runs on: removed. It stays stopped: the lock stays until `criu kill`, `resume` or
 * a restore here. It is killed: the sockets are put into repair mode so that closing them says nothing to the peer,
 * and the lock stays for the time that a peer would wait anyway, so that its packets meet no reset before a restore
 * on this host; then the kernel ends it.
 */
#include "kinds/fd/tcp_connections.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uthash.h>

#include "base/fd.h"
#include "base/log.h"

#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C /* linux/sockios.h hides it from some libc headers */
#endif

#define LOCK_TIMEOUT_S 900 /* tcp_retries2: how long a peer tries by default */
#define REREAD_MAX 10

struct tcp_dump_connection {
	struct dump_file *file;
	InetSkEntry *entry;
	struct connection connection;
	size_t netns;                          /* index in tcp_dump.netns */
	struct tcp_dump_connection *other_end; /* in the tree too; NULL: the peer is outside */
	struct tcp_stream *stream;
};

struct tcp_dump_netns {
	ino_t inode;
	int fd; /* -1: criu's own */
	struct network_lock *lock;
};

struct tcp_dump {
	struct tcp_dump_connection *connections;
	size_t count, capacity;
	struct tcp_dump_netns *netns;
	size_t netns_count, netns_capacity;
	pid_t criu; /* who waits for the reading child */
};

/* What the reading child tells, in memory that it shares with criu. */
struct tcp_reading {
	struct failure failure;
	int ret;
	struct {
		uint32_t state;
		bool has_shutdown;
		SkShutdown shutdown;
	} ends[];
};

/* For finding the other end. */
struct connection_index {
	struct connection key;
	void *value;
	UT_hash_handle hh;
};

static void connection_reverse(const struct connection *connection, struct connection *ret_reverse)
{
	memset(ret_reverse, 0, sizeof(*ret_reverse)); /* it is a hash key, with its padding */
	ret_reverse->family = connection->family;
	ret_reverse->local_port = connection->remote_port;
	ret_reverse->remote_port = connection->local_port;
	memcpy(ret_reverse->local, connection->remote, sizeof(ret_reverse->local));
	memcpy(ret_reverse->remote, connection->local, sizeof(ret_reverse->remote));
}

static void index_add(struct connection_index **index, struct connection_index *node,
		      const struct connection *connection, void *value)
{
	memset(&node->key, 0, sizeof(node->key));
	node->key.family = connection->family;
	node->key.local_port = connection->local_port;
	node->key.remote_port = connection->remote_port;
	memcpy(node->key.local, connection->local, sizeof(node->key.local));
	memcpy(node->key.remote, connection->remote, sizeof(node->key.remote));
	node->value = value;
	HASH_ADD(hh, *index, key, sizeof(node->key), node);
}

static void *index_find_reverse(struct connection_index *index, const struct connection *connection)
{
	struct connection reverse;
	struct connection_index *found;

	connection_reverse(connection, &reverse);
	HASH_FIND(hh, index, &reverse, sizeof(reverse), found);
	return found ? found->value : NULL;
}

/* The network namespace of a socket as an index in state->netns. */
static size_t socket_netns(struct tcp_dump *state, int fd)
{
	_cleanup_fd_ int netns_fd = ioctl(fd, SIOCGSKNS);
	struct stat own = {0}, netns = {0};
	struct tcp_dump_netns *added;

	if (stat("/proc/self/ns/net", &own) || netns_fd < 0 || fstat(netns_fd, &netns))
		netns = own;
	for (size_t i = 0; i < state->netns_count; i++)
		if (state->netns[i].inode == netns.st_ino)
			return i;
	ARRAY_GROW(state->netns, state->netns_count, state->netns_capacity);
	added = &state->netns[state->netns_count];
	*added = (struct tcp_dump_netns){.inode = netns.st_ino, .fd = -1};
	if (netns.st_ino != own.st_ino)
		added->fd = TAKE_FD(netns_fd);
	return state->netns_count++;
}

void tcp_dump_add(struct dump *dump, struct tcp_dump **state, const struct target_fd *target, InetSkEntry *entry,
		  const struct connection *connection)
{
	struct tcp_dump_connection *added;

	if (!*state)
		*state = xcalloc(1, sizeof(**state));
	ARRAY_GROW((*state)->connections, (*state)->count, (*state)->capacity);
	added = &(*state)->connections[(*state)->count++];
	*added = (struct tcp_dump_connection){.file = target->file, .entry = entry, .connection = *connection};
	added->netns = socket_netns(*state, target->fd);
}

static const char *connection_owner(struct dump *dump, const struct tcp_dump_connection *connection)
{
	return dump_fd_name(dump, connection->file->task, connection->file->number);
}

static void find_pairs(struct tcp_dump *state)
{
	struct connection_index *index = NULL;
	struct connection_index *nodes = xcalloc(state->count, sizeof(*nodes));

	for (size_t i = 0; i < state->count; i++)
		index_add(&index, &nodes[i], &state->connections[i].connection, &state->connections[i]);
	for (size_t i = 0; i < state->count; i++) {
		struct tcp_dump_connection *connection = &state->connections[i];
		struct tcp_dump_connection *other = index_find_reverse(index, &connection->connection);

		connection->other_end = other && other->netns == connection->netns ? other : NULL;
	}
	HASH_CLEAR(hh, index);
	free(nodes);
}

/* Connections with a peer outside that shall not come back. */
static void close_outside(struct tcp_dump *state)
{
	size_t kept = 0;

	for (size_t i = 0; i < state->count; i++) {
		struct tcp_dump_connection *connection = &state->connections[i];

		if (connection->other_end) {
			state->connections[kept++] = *connection;
			continue;
		}
		connection->entry->state = TCP_STATE_CLOSE;
		connection->entry->src_port = connection->entry->dst_port = 0;
		connection->entry->has_shutdown = true;
		connection->entry->shutdown = SK_SHUTDOWN__BOTH;
	}
	state->count = kept;
	find_pairs(state); /* they have moved */
}

/* The connections of one namespace that have a peer outside; the caller frees them. */
static struct connection *outside_connections(const struct tcp_dump *state, size_t netns, size_t *ret_count)
{
	struct connection *outside = xcalloc(state->count, sizeof(*outside));
	size_t count = 0;

	for (size_t i = 0; i < state->count; i++)
		if (!state->connections[i].other_end && state->connections[i].netns == netns)
			outside[count++] = state->connections[i].connection;
	*ret_count = count;
	return outside;
}

static int lock_netns(struct dump *dump, struct tcp_dump *state, size_t index)
{
	struct tcp_dump_netns *netns = &state->netns[index];
	struct network_lock_owner owner = {
		.root_pid = dump->tasks[0]->pid,
		.run_id = dump->run_id,
		.start_time = dump->tasks[0]->start_time,
	};
	size_t count;
	_cleanup_free_ struct connection *outside = outside_connections(state, index, &count);
	int ret;

	if (!count)
		return 0;
	if (dump->options->network_lock == NETWORK_LOCK_SKIP) {
		log_warn("%zu connections with peers outside the tree are not locked (--network-lock skip)", count);
		return 0;
	}
	if (dump->only_explain)
		return network_lock_probe(&dump->failure) ? dump_blocked(dump) : 0;
	ret = network_lock_create(&dump->failure, netns->fd, &owner, outside, count, &netns->lock);
	if (ret) {
		char text[128];

		return fail_in(&dump->failure, "%zu established TCP connections with peers outside the tree (%s …)",
			       count, connection_text(&outside[0], text, sizeof(text)));
	}
	dump->network_locked = true;
	return 0;
}

enum part { READ_SEND = 1, READ_RECEIVE = 2, READ_BOTH = 3 };

static int read_connection(struct dump *dump, struct tcp_dump *state, struct tcp_dump_connection *connection,
			   enum part part)
{
	_cleanup_fd_ int fd = -1;
	int ret = dump_file_get(dump, connection->file, &fd);

	if (getppid() != state->criu)
		_exit(1); /* criu was killed, the tree runs */
	if (ret)
		return ret;
	if (!connection->stream)
		connection->stream = tcp_stream_new();
	if (part & READ_SEND)
		ret = tcp_stream_read_send(&dump->failure, fd, connection->stream);
	if (!ret && part & READ_RECEIVE)
		ret = tcp_stream_read_receive(&dump->failure, fd, connection->stream);
	if (ret) {
		char text[128];

		return fail_in(&dump->failure, "%s: connection %s", connection_owner(dump, connection),
			       connection_text(&connection->connection, text, sizeof(text)));
	}
	return 0;
}

/* The image, and what the socket's own entry says of its state. The queues are not kept in memory. */
static int write_connection(struct dump *dump, struct tcp_dump_connection *connection)
{
	struct tcp_stream *stream = connection->stream;
	bool closed_for_reading = connection->entry->has_shutdown && connection->entry->shutdown & SK_SHUTDOWN__READ;
	int ret;

	if (!tcp_state_is_connected(stream->state)) {
		/* Reset by the peer between the first look and the lock: closed, as the program will see it. */
		connection->entry->state = TCP_STATE_CLOSE;
		connection->entry->has_shutdown = true;
		connection->entry->shutdown = SK_SHUTDOWN__BOTH;
		return 0;
	}
	connection->entry->state = stream->state;
	connection->entry->shutdown = (closed_for_reading || tcp_state_has_peer_fin(stream->state) ? 1 : 0) |
				      (tcp_state_has_own_fin(stream->state) ? 2 : 0);
	connection->entry->has_shutdown = connection->entry->shutdown != 0;
	ret = tcp_stream_write(dump->images_dirfd, &dump->failure, connection->entry->ino, stream);
	free(stream->in);
	free(stream->out);
	stream->in = stream->out = NULL;
	return ret;
}

/* Both directions of every pair: first what is on the way, then what has arrived. */
static int dump_pairs(struct dump *dump, struct tcp_dump *state)
{
	int ret = 0;

	for (size_t i = 0; i < state->count && !ret; i++)
		if (state->connections[i].other_end)
			ret = read_connection(dump, state, &state->connections[i], READ_SEND);
	for (size_t i = 0; i < state->count && !ret; i++)
		if (state->connections[i].other_end)
			ret = read_connection(dump, state, &state->connections[i], READ_RECEIVE);
	for (size_t i = 0; i < state->count && !ret; i++)
		if (state->connections[i].other_end)
			tcp_stream_count_sent(state->connections[i].stream, state->connections[i].other_end->stream);
	for (size_t i = 0; i < state->count && !ret; i++)
		if (state->connections[i].other_end)
			ret = write_connection(dump, &state->connections[i]);
	return ret;
}

static int dump_outside(struct dump *dump, struct tcp_dump *state, struct tcp_dump_connection *connection)
{
	int ret = read_connection(dump, state, connection, READ_BOTH);

	return ret ? ret : write_connection(dump, connection);
}

static int reread_stale(struct dump *dump, struct tcp_dump *state, struct tcp_dump_connection *connection,
			bool *changed)
{
	_cleanup_fd_ int fd = -1;
	int ret = dump_file_get(dump, connection->file, &fd);

	if (ret || !tcp_stream_is_stale(fd, connection->stream))
		return ret;
	*changed = true;
	return dump_outside(dump, state, connection);
}

static int dump_all_outside(struct dump *dump, struct tcp_dump *state)
{
	bool changed = true;
	int ret = 0;

	for (size_t i = 0; i < state->count && !ret; i++)
		if (!state->connections[i].other_end)
			ret = dump_outside(dump, state, &state->connections[i]);
	for (int round = 0; round < REREAD_MAX && changed && !ret; round++) {
		changed = false;
		for (size_t i = 0; i < state->count && !ret; i++)
			if (!state->connections[i].other_end)
				ret = reread_stale(dump, state, &state->connections[i], &changed);
	}
	return ret;
}

static void read_all(struct dump *dump, struct tcp_dump *state, struct tcp_reading *reading)
{
	reading->ret = dump_all_outside(dump, state);
	if (!reading->ret)
		reading->ret = dump_pairs(dump, state);
	for (size_t i = 0; i < state->count; i++) {
		reading->ends[i].state = state->connections[i].entry->state;
		reading->ends[i].has_shutdown = state->connections[i].entry->has_shutdown;
		reading->ends[i].shutdown = state->connections[i].entry->shutdown;
	}
	reading->failure = dump->failure;
}

static int take_results(struct dump *dump, struct tcp_dump *state, const struct tcp_reading *reading)
{
	if (reading->ret) {
		dump->failure = reading->failure;
		return reading->ret;
	}
	for (size_t i = 0; i < state->count; i++) {
		state->connections[i].entry->state = reading->ends[i].state;
		state->connections[i].entry->has_shutdown = reading->ends[i].has_shutdown;
		state->connections[i].entry->shutdown = reading->ends[i].shutdown;
	}
	return 0;
}

static int read_in_child(struct dump *dump, struct tcp_dump *state)
{
	size_t size = sizeof(struct tcp_reading) + state->count * sizeof(((struct tcp_reading *)0)->ends[0]);
	struct tcp_reading *reading = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status = 0, ret;
	pid_t child;

	if (reading == MAP_FAILED)
		return fail_errno(&dump->failure, errno, "tcp-read", NULL, NULL, "no memory");
	state->criu = getpid();
	child = fork();
	if (!child) {
		read_all(dump, state, reading);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		ret = fail_errno(&dump->failure, child < 0 ? errno : EIO, "tcp-read", NULL, NULL,
				 "the process that reads the connections has failed");
	else
		ret = take_results(dump, state, reading);
	munmap(reading, size);
	return ret;
}

int tcp_dump_finish(struct dump *dump, struct tcp_dump *state)
{
	int ret = 0;

	if (!state)
		return 0;
	find_pairs(state);
	if (dump->options->tcp_close)
		close_outside(state);
	for (size_t i = 0; i < state->netns_count && !ret; i++)
		ret = lock_netns(dump, state, i);
	if (ret || dump->only_explain)
		return ret;
	return state->count ? read_in_child(dump, state) : 0;
}

/* The last reference of a socket in repair mode goes without a packet. */
static void silence(struct dump *dump, struct tcp_dump_connection *connection)
{
	_cleanup_fd_ int fd = -1;
	int reuse;
	int ret = dump_file_get(dump, connection->file, &fd);

	if (!ret)
		ret = tcp_repair_begin(fd, &reuse);
	if (ret)
		log_warn("%s: the peer will see this connection end: %s", connection_owner(dump, connection),
			 strerror(-ret));
}

/* What becomes of one lock; a lock that cannot be kept is gone, which the user must know. */
static void release_lock(struct dump *dump, struct network_lock **lock)
{
	struct failure failure = {0};
	char line[1024];

	if (!*lock)
		return;
	if (failure_is_set(&dump->failure) || dump->options->end_state == DUMP_END_RUNNING) {
		network_lock_drop(lock);
		return;
	}
	if (network_lock_keep(&failure, lock, dump->options->end_state == DUMP_END_KILL ? LOCK_TIMEOUT_S : 0)) {
		log_error("the network lock ends with this dump: %s", failure_line(&failure, line, sizeof(line)));
		network_lock_drop(lock);
	}
}

void tcp_dump_release(struct dump *dump, struct tcp_dump **state, bool tree_is_gone)
{
	if (!*state)
		return;
	for (size_t i = 0; i < (*state)->count; i++) {
		if (tree_is_gone)
			silence(dump, &(*state)->connections[i]);
		tcp_stream_free((*state)->connections[i].stream);
	}
	for (size_t i = 0; i < (*state)->netns_count; i++) {
		release_lock(dump, &(*state)->netns[i].lock);
		close_fd_pointer(&(*state)->netns[i].fd);
	}
	free((*state)->connections);
	free((*state)->netns);
	free(*state);
	*state = NULL;
}

struct tcp_restore {
	struct network_lock *lock;
	struct connection *outside; /* connections with a peer that is not in the images */
	size_t count;
};

static struct inet_restore_file *connection_of(const struct fd_kind *kind, const struct restore_file *file)
{
	struct inet_restore_file *inet = file->kind == kind ? file->kind_data : NULL;

	return inet && inet->is_connection ? inet : NULL;
}

static void find_restored_pairs(struct restore *restore, const struct fd_kind *kind)
{
	struct connection_index *index = NULL;
	struct connection_index *nodes = xcalloc(restore->file_count + 1, sizeof(*nodes));

	for (size_t i = 0; i < restore->file_count; i++) {
		struct inet_restore_file *inet = connection_of(kind, restore->files[i]);

		if (inet)
			index_add(&index, &nodes[i], &inet->connection, inet);
	}
	for (size_t i = 0; i < restore->file_count; i++) {
		struct inet_restore_file *inet = connection_of(kind, restore->files[i]);

		if (inet)
			inet->inside = index_find_reverse(index, &inet->connection) != NULL;
	}
	HASH_CLEAR(hh, index);
	free(nodes);
}

static bool lock_owner(const struct restore *restore, struct network_lock_owner *ret_owner)
{
	const char *run_id = restore->inventory->dump_criu_run_id;

	if (!run_id || strspn(run_id, "0123456789abcdef-") != strlen(run_id) || strlen(run_id) < 8)
		return false;
	*ret_owner = (struct network_lock_owner){
		.root_pid = restore->tasks[0]->pid,
		.run_id = run_id,
		.restoring = true,
	};
	return true;
}

int tcp_restore_prepare(struct restore *restore, const struct fd_kind *kind, struct tcp_restore **state)
{
	struct connection *outside = xcalloc(restore->file_count + 1, sizeof(*outside));
	size_t count = 0;

	find_restored_pairs(restore, kind);
	for (size_t i = 0; i < restore->file_count; i++) {
		struct inet_restore_file *inet = connection_of(kind, restore->files[i]);

		if (inet && !inet->inside)
			outside[count++] = inet->connection;
	}
	*state = xcalloc(1, sizeof(**state));
	(*state)->outside = outside;
	(*state)->count = count;
	return 0;
}

void tcp_restore_lock(struct restore *restore, struct tcp_restore *state)
{
	struct network_lock_owner owner;
	struct failure failure = {0};
	char line[1024];

	/* Without a lock a restore works as long as no peer sends in the next milliseconds. */
	if (state->count && !restore->options->tcp_close && lock_owner(restore, &owner) &&
	    network_lock_create(&failure, -1, &owner, state->outside, state->count, &state->lock))
		log_warn("%s", failure_line(&failure, line, sizeof(line)));
}

void tcp_restore_release(struct restore *restore, struct tcp_restore **state)
{
	if (!*state)
		return;
	network_lock_drop(&(*state)->lock);
	network_lock_forget(-1, (*state)->outside, (*state)->count);
	free((*state)->outside);
	free(*state);
	*state = NULL;
}
