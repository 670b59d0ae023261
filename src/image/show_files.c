/* SPDX-License-Identifier: Apache-2.0 */
/* Open files of a dump, one line for each: what a person would call it. */
#include "image/show_read.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <string.h>

#include "base/fd.h"
#include "image/display.h"
#include "image/image_schema.h"

json_t *json_name(const char *text, size_t length)
{
	json_t *json = json_stringn(text, length);

	if (json)
		return json;
	_cleanup_free_ char *ascii = xcalloc(length + 1, 1);
	for (size_t i = 0; i < length; i++)
		ascii[i] = text[i] & 0x80 ? '?' : text[i];
	return json_stringn(ascii, length);
}

static void address(const uint32_t *words, size_t count, uint32_t port, char *text, size_t size)
{
	char host[INET6_ADDRSTRLEN];

	if (!display_address(words, count, host, sizeof(host)))
		snprintf(host, sizeof(host), "?");
	snprintf(text, size, count == 4 ? "[%s]:%u" : "%s:%u", host, port);
}

static char *describe_inet(const InetSkEntry *entry)
{
	char from[64], to[64], protocol[16], state[16];

	address(entry->src_addr, entry->n_src_addr, entry->src_port, from, sizeof(from));
	address(entry->dst_addr, entry->n_dst_addr, entry->dst_port, to, sizeof(to));
	if (!display_number(display_of("inet_sk_entry", "proto"), entry->proto, protocol, sizeof(protocol)))
		snprintf(protocol, sizeof(protocol), "protocol %u", entry->proto);
	if (!display_number(display_of("inet_sk_entry", "state"), entry->state, state, sizeof(state)))
		snprintf(state, sizeof(state), "state %u", entry->state);
	if (!entry->dst_port)
		return xasprintf("%s %s %s", protocol, from, state);
	return xasprintf("%s %s to %s %s", protocol, from, to, state);
}

static char *describe_unix(const UnixSkEntry *entry)
{
	const char *name = (const char *)entry->name.data;
	int length = entry->name.len;

	/* A name in the abstract namespace begins with a NUL byte, one in the file system can end in one. */
	if (length && !name[0])
		return xasprintf("@%.*s", length - 1, name + 1);
	if (length)
		return xasprintf("%s%s%.*s", entry->name_dir ? entry->name_dir : "", entry->name_dir ? "/" : "",
				 (int)strnlen(name, length), name);
	if (entry->peer)
		return xasprintf("socket %u, peer %u", entry->ino, entry->peer);
	return xasprintf("socket %u", entry->ino);
}

static char *describe(const FileEntry *entry)
{
	if (entry->reg)
		return xasprintf("%s", entry->reg->name);
	if (entry->isk)
		return describe_inet(entry->isk);
	if (entry->usk)
		return describe_unix(entry->usk);
	if (entry->pipe)
		return xasprintf("pipe %u, %s end", entry->pipe->pipe_id,
				 (entry->pipe->flags & 3) == 1 ? "writing" : "reading");
	if (entry->fifo)
		return xasprintf("fifo %u", entry->fifo->pipe_id);
	if (entry->efd)
		return xasprintf("counter %" PRIu64, (uint64_t)entry->efd->counter);
	if (entry->epfd)
		return xasprintf("%zu descriptors watched", entry->epfd->n_tfd);
	if (entry->ify)
		return xasprintf("%zu watches", entry->ify->n_wd);
	if (entry->tty)
		return xasprintf("terminal %u", entry->tty->tty_info_id);
	if (entry->memfd)
		return xasprintf("memory file %u", entry->memfd->inode_id);
	return xasprintf("id %u", entry->id);
}

static json_t *read_file(const FileEntry *entry)
{
	const ProtobufCEnumValue *type = protobuf_c_enum_descriptor_get_value(&fd_types__descriptor, entry->type);
	_cleanup_free_ char *text = describe(entry);
	json_t *file = json_object();

	json_object_set_new(file, "type", json_string(type ? type->name : "?"));
	json_object_set_new(file, "description", json_name(text, strlen(text)));
	return file;
}

int images_read_files(int dirfd, struct failure *failure, json_t **ret_files)
{
	struct image *image = NULL;
	ProtobufCMessage *message = NULL;
	int result = image_open(dirfd, failure, IMAGE_FILES, 0, &image);

	if (result && (result != -ENOENT || failure_is_set(failure)))
		return result;
	json_t *files = json_object();
	while (image && (result = image_read(image, &message)) > 0) {
		const FileEntry *entry = (const FileEntry *)message;
		char id[16];
		snprintf(id, sizeof(id), "%u", entry->id);
		json_object_set_new(files, id, read_file(entry));
		image_message_free(message);
	}
	if (image && result < 0) {
		image_close(&image);
		json_decref(files);
		return result;
	}
	image_close(&image);
	*ret_files = files;
	return 0;
}
