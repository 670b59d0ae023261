/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/show.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "cmd/command.h"

enum { TEXT_BYTES = 4400 };

static const char *type_name(FdTypes type)
{
	static const struct {
		FdTypes type;
		const char *name;
	} names[] = {
		{FD_TYPES__REG, "file"},
		{FD_TYPES__PIPE, "pipe"},
		{FD_TYPES__FIFO, "fifo"},
		{FD_TYPES__INETSK, "socket"},
		{FD_TYPES__UNIXSK, "unix socket"},
		{FD_TYPES__EVENTFD, "eventfd"},
		{FD_TYPES__EVENTPOLL, "epoll"},
		{FD_TYPES__INOTIFY, "inotify"},
		{FD_TYPES__SIGNALFD, "signalfd"},
		{FD_TYPES__PACKETSK, "packet socket"},
		{FD_TYPES__TTY, "terminal"},
		{FD_TYPES__FANOTIFY, "fanotify"},
		{FD_TYPES__NETLINKSK, "netlink socket"},
		{FD_TYPES__NS, "namespace"},
		{FD_TYPES__TUNF, "tun"},
		{FD_TYPES__EXT, "external file"},
		{FD_TYPES__TIMERFD, "timerfd"},
		{FD_TYPES__MEMFD, "memfd"},
		{FD_TYPES__BPFMAP, "bpf map"},
		{FD_TYPES__PIDFD, "pidfd"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].type == type)
			return names[i].name;
	return "unknown";
}

static void address_text(const InetSkEntry *socket, const uint32_t *words, size_t count, uint32_t port, char *text,
			 size_t size)
{
	char address[INET6_ADDRSTRLEN] = "?";
	size_t needed = socket->family == AF_INET6 ? 4 : 1;

	if (count >= needed && (socket->family == AF_INET || socket->family == AF_INET6))
		inet_ntop((int)socket->family, words, address, sizeof(address));
	snprintf(text, size, socket->family == AF_INET6 ? "[%s]:%u" : "%s:%u", address, port);
}

static void inet_text(const InetSkEntry *socket, char *text, size_t size)
{
	const char *protocol = socket->proto == IPPROTO_TCP       ? "tcp"
			       : socket->proto == IPPROTO_UDP     ? "udp"
			       : socket->proto == IPPROTO_UDPLITE ? "udplite"
								  : "ip";
	char local[80], remote[80];

	address_text(socket, socket->src_addr, socket->n_src_addr, socket->src_port, local, sizeof(local));
	address_text(socket, socket->dst_addr, socket->n_dst_addr, socket->dst_port, remote, sizeof(remote));
	if (socket->state == TCP_LISTEN)
		snprintf(text, size, "%s %s listening", protocol, local);
	else if (socket->dst_port)
		snprintf(text, size, "%s %s to %s", protocol, local, remote);
	else
		snprintf(text, size, "%s %s", protocol, local);
}

static void unix_text(const UnixSkEntry *socket, char *text, size_t size)
{
	static const char *const types[] = {
		[SOCK_STREAM] = "stream", [SOCK_DGRAM] = "datagram", [SOCK_SEQPACKET] = "seqpacket"};
	const char *type = socket->type < ARRAY_SIZE(types) && types[socket->type] ? types[socket->type] : "?";
	const char *name = (const char *)socket->name.data;
	int length = (int)strnlen(name ?: "", socket->name.len);
	int used = snprintf(text, size, "%s, inode %u", type, socket->ino);

	if (socket->name.len && !name[0])
		used += snprintf(text + used, size - used, ", \"@%.*s\"", (int)strnlen(name + 1, socket->name.len - 1),
				 name + 1);
	else if (length)
		used += snprintf(text + used, size - used, ", \"%.*s\"", length > 256 ? 256 : length, name);
	if (socket->state == TCP_LISTEN)
		snprintf(text + used, size - used, ", listening");
	else if (socket->peer)
		snprintf(text + used, size - used, ", peer %u", socket->peer);
}

static void file_text(const FileEntry *file, char *text, size_t size)
{
	text[0] = '\0';
	if (file->reg)
		snprintf(text, size, "\"%s\"", file->reg->name);
	else if (file->isk)
		inet_text(file->isk, text, size);
	else if (file->usk && file->usk->name.len <= 256)
		unix_text(file->usk, text, size);
	else if (file->pipe)
		snprintf(text, size, "pipe:[%u]", file->pipe->pipe_id);
	else if (file->fifo)
		snprintf(text, size, "fifo:[%u]", file->fifo->pipe_id);
	else if (file->efd)
		snprintf(text, size, "counter %" PRIu64, file->efd->counter);
	else if (file->epfd)
		snprintf(text, size, "%zu watched", file->epfd->n_tfd);
	else if (file->memfd)
		snprintf(text, size, "inode %u", file->memfd->inode_id);
	else if (file->ext)
		snprintf(text, size, "external");
}

json_t *show_file(const FileEntry *file)
{
	char text[TEXT_BYTES];

	file_text(file, text, sizeof(text));
	json_t *json = json_pack("{s:I, s:s, s:o}", "id", (json_int_t)file->id, "type", type_name(file->type), "text",
				 report_text(text));
	if (file->reg) {
		json_object_set_new(json, "path", report_text(file->reg->name));
		json_object_set_new(json, "position", json_integer((json_int_t)file->reg->pos));
	}
	return json;
}
