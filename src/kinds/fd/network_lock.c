/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One nftables table for each dump and network namespace, of family inet, made in process through libnftables.
 *
 * Its sets hold (remote address, remote port, local address, local port) of each locked connection, so thousands of
 * them cost one hash lookup a packet and one transaction to add. Two chains drop what comes for them and what goes
 * out from them. The chains hang at `input` and `output`, where the addresses are those that the sockets know, also
 * behind address translation; and before connection tracking on the way out.
 *
 * While criu works, the table is "owned": the kernel ties it to the netlink socket of our session (nft_session.h) and
 * removes it when that closes, however criu ends. So a killed dump cannot leave a program cut off. A lock that must
 * stay (a tree left stopped) is written again without an owner, in one transaction, so that no packet slips through
 * between.
 *
 * Packets with the mark NETWORK_LOCK_MARK pass: a restore makes packets of the peer by itself (tcp_stream.c).
 */
#include "kinds/fd/network_lock.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/nft_session.h"

#define TABLE_PREFIX "criu-"
#define RUN_ID_LENGTH 8

struct network_lock {
	struct nft_session *nft; /* owns the table */
	char name[64];
	char *comment;
	struct connection *connections;
	size_t count;
};

char *network_lock_name(const struct network_lock_owner *owner, char *buffer, size_t size)
{
	snprintf(buffer, size, TABLE_PREFIX "%d-%.*s%s", owner->root_pid, RUN_ID_LENGTH, owner->run_id,
		 owner->restoring ? "-restore" : "");
	return buffer;
}

char *connection_text(const struct connection *connection, char *buffer, size_t size)
{
	char local[INET6_ADDRSTRLEN], remote[INET6_ADDRSTRLEN];
	const char *format = connection->family == AF_INET6 ? "[%s]:%u to [%s]:%u" : "%s:%u to %s:%u";

	inet_ntop(connection->family, connection->local, local, sizeof(local));
	inet_ntop(connection->family, connection->remote, remote, sizeof(remote));
	snprintf(buffer, size, format, local, connection->local_port, remote, connection->remote_port);
	return buffer;
}

/* The name of a table comes from the kernel: is it one that criu gives? */
static bool is_lock_name(const char *name)
{
	size_t digits, run_id;

	if (strncmp(name, TABLE_PREFIX, strlen(TABLE_PREFIX)))
		return false;
	name += strlen(TABLE_PREFIX);
	digits = strspn(name, "0123456789");
	if (!digits || name[digits] != '-')
		return false;
	run_id = strspn(name + digits + 1, "0123456789abcdef");
	return run_id && !name[digits + 1 + run_id];
}

static int fail_nft(struct failure *failure, const struct nft_session *nft, const char *what)
{
	return fail(failure, EIO, "network-lock", NULL,
		    "give criu CAP_NET_ADMIN and a kernel with nf_tables, or use --network-lock skip and keep the "
		    "peers' packets away by other means",
		    "%s through nftables: %s", what, nft_session_error(nft));
}

/* @command: "add" or "delete". */
static void write_elements(FILE *text, const char *command, const char *table, const struct connection *connections,
			   size_t count, int family)
{
	const char *separator = "";
	bool begun = false;

	for (size_t i = 0; i < count; i++) {
		const struct connection *connection = &connections[i];
		char local[INET6_ADDRSTRLEN], remote[INET6_ADDRSTRLEN];

		if (connection->family != family)
			continue;
		inet_ntop(family, connection->local, local, sizeof(local));
		inet_ntop(family, connection->remote, remote, sizeof(remote));
		if (!begun)
			fprintf(text, "%s element inet %s tcp%d { ", command, table, family == AF_INET ? 4 : 6);
		begun = true;
		fprintf(text, "%s%s . %u . %s . %u", separator, remote, connection->remote_port, local,
			connection->local_port);
		separator = ", ";
	}
	if (begun)
		fprintf(text, " }\n");
}

/*
 * The commands of one transaction: the old table and the new one change places for all packets at the same moment.
 * When the owned table is made, "add" lets the "delete" work if there is none of an earlier criu yet; an owned one
 * that is there cannot be "added" again.
 */
static char *table_text(const struct network_lock *lock, bool owned, unsigned int timeout_seconds)
{
	char timeout[64] = "";
	char *buffer = NULL;
	size_t size = 0;
	FILE *text = open_memstream(&buffer, &size);

	if (!text)
		return NULL;
	if (timeout_seconds)
		snprintf(timeout, sizeof(timeout), "flags timeout; timeout %us; ", timeout_seconds);
	if (owned)
		fprintf(text, "add table inet %s\n", lock->name);
	fprintf(text, "delete table inet %s\n", lock->name);
	fprintf(text, "table inet %s {\n%s comment \"%s\"\n", lock->name, owned ? "flags owner;" : "", lock->comment);
	fprintf(text, "set tcp4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; %s}\n", timeout);
	fprintf(text, "set tcp6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; %s}\n", timeout);
	fprintf(text,
		"chain input { type filter hook input priority -450; meta mark 0x%x accept; "
		"ip saddr . tcp sport . ip daddr . tcp dport @tcp4 drop; "
		"ip6 saddr . tcp sport . ip6 daddr . tcp dport @tcp6 drop; }\n",
		NETWORK_LOCK_MARK);
	fprintf(text,
		"chain output { type filter hook output priority -450; meta mark 0x%x accept; "
		"ip daddr . tcp dport . ip saddr . tcp sport @tcp4 drop; "
		"ip6 daddr . tcp dport . ip6 saddr . tcp sport @tcp6 drop; }\n}\n",
		NETWORK_LOCK_MARK);
	write_elements(text, "add", lock->name, lock->connections, lock->count, AF_INET);
	write_elements(text, "add", lock->name, lock->connections, lock->count, AF_INET6);
	if (fclose(text)) {
		free(buffer);
		return NULL;
	}
	return buffer;
}

static int run_table(struct failure *failure, struct network_lock *lock, bool owned, unsigned int timeout_seconds)
{
	_cleanup_free_ char *text = table_text(lock, owned, timeout_seconds);

	if (!text)
		return fail(failure, ENOMEM, "network-lock", NULL, NULL, "no memory for the rules");
	if (nft_session_run(lock->nft, text, false))
		return fail_nft(failure, lock->nft, "cannot lock the network");
	return 0;
}

static void lock_free(struct network_lock *lock)
{
	nft_session_close(lock->nft);
	free(lock->comment);
	free(lock->connections);
	free(lock);
}

int network_lock_create(struct failure *failure, int netns_fd, const struct network_lock_owner *owner,
			const struct connection *connections, size_t count, struct network_lock **ret_lock)
{
	struct network_lock *lock = xcalloc(1, sizeof(*lock));
	int ret = nft_session_open(failure, netns_fd, &lock->nft);

	if (ret) {
		lock_free(lock);
		return ret;
	}
	network_lock_name(owner, lock->name, sizeof(lock->name));
	lock->comment = xasprintf("pid %d started %lu run %.36s", owner->root_pid, owner->start_time, owner->run_id);
	lock->connections = xmemdup(connections, count * sizeof(*connections));
	lock->count = count;
	ret = run_table(failure, lock, true, 0);
	if (ret) {
		lock_free(lock);
		return ret;
	}
	log_info("network lock %s: %zu connections", lock->name, count);
	*ret_lock = lock;
	return 0;
}

int network_lock_keep(struct failure *failure, struct network_lock **lock, unsigned int timeout_seconds)
{
	int ret = run_table(failure, *lock, false, timeout_seconds);

	if (ret)
		return ret;
	log_info("network lock %s stays", (*lock)->name);
	nft_session_leave(TAKE_POINTER((*lock)->nft));
	lock_free(*lock);
	*lock = NULL;
	return 0;
}

void network_lock_drop(struct network_lock **lock)
{
	char command[96];

	if (!*lock)
		return;
	snprintf(command, sizeof(command), "delete table inet %s", (*lock)->name);
	if (nft_session_run((*lock)->nft, command, false))
		log_warn("network lock %s: cannot be removed: %s", (*lock)->name, nft_session_error((*lock)->nft));
	else
		nft_session_leave(TAKE_POINTER((*lock)->nft));
	lock_free(*lock);
	*lock = NULL;
}

int network_lock_probe(struct failure *failure)
{
	struct nft_session *nft;
	int ret = nft_session_open(failure, -1, &nft);

	if (ret)
		return ret;
	if (nft_session_run(nft,
			    "table inet criu-probe {\nflags owner;\n"
			    "set tcp4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; }\n"
			    "chain input { type filter hook input priority -450; "
			    "ip saddr . tcp sport . ip daddr . tcp dport @tcp4 drop; }\n}\n",
			    true))
		ret = fail_nft(failure, nft, "cannot lock the network");
	nft_session_leave(nft);
	return ret;
}

/* A lock with a time limit stays as a table without elements. */
static bool is_expired(struct nft_session *nft, const char *name)
{
	char command[96];

	snprintf(command, sizeof(command), "list table inet %.64s", name);
	return !nft_session_run(nft, command, false) && !strstr(nft_session_output(nft), "elements = ");
}

static void delete_table(struct nft_session *nft, const char *name)
{
	char command[96];

	snprintf(command, sizeof(command), "delete table inet %.64s", name);
	nft_session_run(nft, command, false);
}

/* One line of "list tables". Returns the name of the lock in it, or NULL. */
static char *lock_of_line(char *line)
{
	static const char prefix[] = "table inet ";
	char *name = line + sizeof(prefix) - 1;

	if (strncmp(line, prefix, sizeof(prefix) - 1))
		return NULL;
	name[strcspn(name, " ")] = '\0';
	return is_lock_name(name) ? name : NULL;
}

int network_lock_list(int netns_fd, void (*found)(void *context, const char *name), void *context)
{
	_cleanup_free_ char *output = NULL;
	char *line, *rest;
	struct failure ignored = {};
	struct nft_session *nft;
	int ret = nft_session_open(&ignored, netns_fd, &nft);

	if (ret)
		return ret;
	if (nft_session_run(nft, "list tables inet", false)) {
		nft_session_leave(nft);
		return -EIO;
	}
	output = xstrdup(nft_session_output(nft));
	for (line = strtok_r(output, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		char *name = lock_of_line(line);

		if (name && is_expired(nft, name))
			delete_table(nft, name);
		else if (name)
			found(context, name);
	}
	nft_session_leave(nft);
	return 0;
}

struct lock_forgetting {
	int netns_fd;
	const struct connection *connections;
	size_t count;
};

/* What was not there is added first, so that it can be deleted: all in one transaction. */
static void forget_in(void *context, const char *name)
{
	const struct lock_forgetting *forgetting = context;
	static const char *const commands[] = {"add", "delete"};
	_cleanup_free_ char *buffer = NULL;
	size_t size = 0;
	FILE *text = open_memstream(&buffer, &size);
	struct failure ignored = {};
	struct nft_session *nft;

	if (!text)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		write_elements(text, commands[i], name, forgetting->connections, forgetting->count, AF_INET);
		write_elements(text, commands[i], name, forgetting->connections, forgetting->count, AF_INET6);
	}
	if (fclose(text) || nft_session_open(&ignored, forgetting->netns_fd, &nft))
		return;
	if (nft_session_run(nft, buffer, false))
		log_warn("network lock %s still holds connections that were restored: %s", name,
			 nft_session_error(nft));
	nft_session_leave(nft);
}

static void found_nothing(void *context, const char *name)
{
}

void network_lock_forget(int netns_fd, const struct connection *connections, size_t count)
{
	struct lock_forgetting forgetting = {.netns_fd = netns_fd, .connections = connections, .count = count};

	if (!count || network_lock_list(netns_fd, forget_in, &forgetting))
		return;
	network_lock_list(netns_fd, found_nothing, NULL); /* removes what is empty now */
}

/* Returns 0 or -errno (-ENOENT: there is none). */
static int remove_table(int netns_fd, const char *table)
{
	char command[96];
	struct failure ignored = {};
	struct nft_session *nft;
	int ret = nft_session_open(&ignored, netns_fd, &nft);

	if (ret)
		return ret;
	snprintf(command, sizeof(command), "delete table inet %.64s", table);
	if (nft_session_run(nft, command, false)) {
		ret = strstr(nft_session_error(nft), strerror(ENOENT)) ? -ENOENT : -EPERM;
	}
	nft_session_leave(nft);
	return ret;
}

struct lock_removal {
	char prefix[32];
	int netns_fd;
	struct failure *failure;
	int error;
};

static void remove_found(void *context, const char *name)
{
	struct lock_removal *removal = context;
	int ret;

	if (strncmp(name, removal->prefix, strlen(removal->prefix)))
		return;
	ret = remove_table(removal->netns_fd, name);
	if (ret && ret != -ENOENT)
		removal->error = fail_errno(removal->failure, ret, "network-lock", name, NULL,
					    "the network lock cannot be removed");
}

int network_lock_remove_for(struct failure *failure, int netns_fd, pid_t root_pid)
{
	struct lock_removal removal = {.netns_fd = netns_fd, .failure = failure};
	int ret;

	snprintf(removal.prefix, sizeof(removal.prefix), TABLE_PREFIX "%d-", root_pid);
	ret = network_lock_list(netns_fd, remove_found, &removal);
	if (ret)
		return fail_errno(failure, ret, "network-lock", NULL, NULL, "the network locks cannot be listed");
	return removal.error;
}
