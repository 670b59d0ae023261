/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Unix sockets by sock_diag: one request gives all of a network namespace. The answer is about the namespace of the
 * asking netlink socket, so that one is made inside the namespace of the socket that is looked for.
 */
#include "kinds/fd/unix_diag.h"

#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/fd.h"

struct reading {
	struct unix_diag *diag;
	struct arena *arena;
};

static int take_attribute(const struct nlattr *attribute, void *context)
{
	struct reading *reading = ((void **)context)[0];
	struct unix_diag_socket *socket = ((void **)context)[1];
	const void *payload = mnl_attr_get_payload(attribute);
	size_t size = mnl_attr_get_payload_len(attribute);

	switch (mnl_attr_get_type(attribute)) {
	case UNIX_DIAG_NAME:
		socket->name = arena_memdup(reading->arena, payload, size);
		socket->name_length = size;
		break;
	case UNIX_DIAG_PEER:
		socket->has_peer = true;
		socket->peer = mnl_attr_get_u32(attribute);
		break;
	case UNIX_DIAG_ICONS:
		socket->waiting = arena_memdup(reading->arena, payload, size);
		socket->waiting_count = size / sizeof(uint32_t);
		break;
	case UNIX_DIAG_RQLEN:
		if (size >= sizeof(struct unix_diag_rqlen)) {
			socket->receive_queue = ((const struct unix_diag_rqlen *)payload)->udiag_rqueue;
			socket->send_queue = ((const struct unix_diag_rqlen *)payload)->udiag_wqueue;
		}
		break;
	case UNIX_DIAG_SHUTDOWN:
		socket->shutdown = mnl_attr_get_u8(attribute);
		break;
	}
	return MNL_CB_OK;
}

static int take_socket(const struct nlmsghdr *header, void *context)
{
	struct reading *reading = context;
	const struct unix_diag_msg *message = mnl_nlmsg_get_payload(header);
	struct unix_diag_socket *known, *socket = arena_alloc(reading->arena, sizeof(*socket));
	void *attribute_context[] = {reading, socket};

	if (mnl_nlmsg_get_payload_len(header) < sizeof(*message))
		return MNL_CB_OK;
	socket->inode = message->udiag_ino;
	socket->type = message->udiag_type;
	socket->state = message->udiag_state;
	mnl_attr_parse(header, sizeof(*message), take_attribute, attribute_context);
	HASH_REPLACE(hh, reading->diag->sockets, inode, sizeof(socket->inode), socket, known);
	return MNL_CB_OK;
}

static int ask(struct mnl_socket *netlink)
{
	char buffer[256] = {};
	struct nlmsghdr *header = mnl_nlmsg_put_header(buffer);
	struct unix_diag_req *request = mnl_nlmsg_put_extra_header(header, sizeof(*request));

	header->nlmsg_type = SOCK_DIAG_BY_FAMILY;
	header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	request->sdiag_family = AF_UNIX;
	request->udiag_states = ~0u;
	request->udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
	return mnl_socket_sendto(netlink, header, header->nlmsg_len) < 0 ? -errno : 0;
}

static int read_answers(struct reading *reading, struct mnl_socket *netlink)
{
	size_t size = 256 << 10;
	_cleanup_free_ char *buffer = xcalloc(1, size);
	int error = ask(netlink);

	if (error < 0)
		return error;
	for (;;) {
		ssize_t length = mnl_socket_recvfrom(netlink, buffer, size);
		if (length < 0)
			return -errno;
		int result = mnl_cb_run(buffer, length, 0, mnl_socket_get_portid(netlink), take_socket, reading);
		if (result < 0)
			return -errno;
		if (result == MNL_CB_STOP)
			return 0;
	}
}

/* A netlink socket in the network namespace of @fd. */
static struct mnl_socket *open_netlink(int fd)
{
	_cleanup_fd_ int own = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	_cleanup_fd_ int wanted = ioctl(fd, SIOCGSKNS);
	struct stat own_stat, wanted_stat;
	bool elsewhere = own >= 0 && wanted >= 0 && !fstat(own, &own_stat) && !fstat(wanted, &wanted_stat) &&
			 own_stat.st_ino != wanted_stat.st_ino;

	if (elsewhere && setns(wanted, CLONE_NEWNET) < 0)
		return NULL;
	struct mnl_socket *netlink = mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC);
	int error = errno;
	if (elsewhere && setns(own, CLONE_NEWNET) < 0 && netlink) {
		error = errno;
		mnl_socket_close(netlink);
		netlink = NULL;
	}
	errno = error;
	return netlink;
}

int unix_diag_read(struct unix_diag *diag, struct arena *arena, struct failure *failure, int fd)
{
	struct reading reading = {diag, arena};
	struct mnl_socket *netlink = open_netlink(fd);
	int error = netlink ? 0 : -errno;

	if (!error && mnl_socket_bind(netlink, 0, MNL_SOCKET_AUTOPID) < 0)
		error = -errno;
	if (!error)
		error = read_answers(&reading, netlink);
	if (netlink)
		mnl_socket_close(netlink);
	return error ? fail_errno(failure, error, "unix-diag", NULL,
				  "the kernel needs CONFIG_UNIX_DIAG (module unix_diag)",
				  "cannot ask the kernel about unix sockets")
		     : 0;
}

struct unix_diag_socket *unix_diag_find(const struct unix_diag *diag, uint32_t inode)
{
	struct unix_diag_socket *socket;

	HASH_FIND(hh, diag->sockets, &inode, sizeof(inode), socket);
	return socket;
}

static bool has_socket(const char *pid, const char *link)
{
	char path[64], target[64];
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	_cleanup_dir_ DIR *directory = opendir(path);
	while (directory && (entry = readdir(directory))) {
		ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof(target) - 1);
		if (length < 0)
			continue;
		target[length] = '\0';
		if (!strcmp(target, link))
			return true;
	}
	return false;
}

char *unix_diag_owner(uint32_t inode, char *buffer, size_t size)
{
	_cleanup_dir_ DIR *processes = opendir("/proc");
	char link[48], path[64];
	struct dirent *entry;

	snprintf(link, sizeof(link), "socket:[%u]", inode);
	snprintf(buffer, size, "nobody");
	while (processes && (entry = readdir(processes))) {
		_cleanup_free_ char *name = NULL;
		if (entry->d_name[0] < '0' || entry->d_name[0] > '9' || atoi(entry->d_name) == getpid() ||
		    !has_socket(entry->d_name, link))
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/comm", entry->d_name);
		if (read_text_at(AT_FDCWD, path, &name, NULL) < 0)
			continue;
		name[strcspn(name, "\n")] = '\0';
		snprintf(buffer, size, "pid %.20s (%s)", entry->d_name, name);
		break;
	}
	return buffer;
}
