/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types lie one behind the other, each as long as its kind and number of elements say; their ids count from 1. One
 * pass notes where each is. The kernel is trusted, but a kind of a newer kernel is not known here: what lies behind it
 * cannot be found, and the reading fails.
 */
#include "kernel/kernel_types.h"

#include <fcntl.h>
#include <linux/btf.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/log.h"

struct kernel_types {
	char *data;
	size_t bytes;
	bool is_mapped; /* data is the kernel's own */
	const char *strings;
	uint32_t *offsets; /* in data, by id */
	size_t count, capacity;
};

/* What follows the fixed part of a type, in bytes; -1 = an unknown kind. */
static int extra_bytes(const struct btf_type *type)
{
	int count = BTF_INFO_VLEN(type->info);

	switch (BTF_INFO_KIND(type->info)) {
	case BTF_KIND_INT:
	case BTF_KIND_VAR:
	case BTF_KIND_DECL_TAG:
		return sizeof(uint32_t);
	case BTF_KIND_ARRAY:
		return sizeof(struct btf_array);
	case BTF_KIND_STRUCT:
	case BTF_KIND_UNION:
		return count * (int)sizeof(struct btf_member);
	case BTF_KIND_ENUM:
		return count * (int)sizeof(struct btf_enum);
	case BTF_KIND_FUNC_PROTO:
		return count * (int)sizeof(struct btf_param);
	case BTF_KIND_DATASEC:
		return count * (int)sizeof(struct btf_var_secinfo);
	case BTF_KIND_ENUM64:
		return count * 3 * (int)sizeof(uint32_t);
	case BTF_KIND_PTR:
	case BTF_KIND_FWD:
	case BTF_KIND_TYPEDEF:
	case BTF_KIND_VOLATILE:
	case BTF_KIND_CONST:
	case BTF_KIND_RESTRICT:
	case BTF_KIND_FUNC:
	case BTF_KIND_FLOAT:
	case BTF_KIND_TYPE_TAG:
		return 0;
	default:
		return -1;
	}
}

static const struct btf_type *type_at(const struct kernel_types *types, size_t id)
{
	return (const struct btf_type *)(types->data + types->offsets[id]);
}

static const char *name_at(const struct kernel_types *types, uint32_t offset)
{
	return types->strings + offset;
}

static int find_types(struct kernel_types *types, size_t bytes)
{
	const struct btf_header *header = (const void *)types->data;

	if (bytes < sizeof(*header) || header->magic != BTF_MAGIC ||
	    (uint64_t)header->hdr_len + header->type_off + header->type_len > bytes ||
	    (uint64_t)header->hdr_len + header->str_off + header->str_len > bytes)
		return -EPROTO;
	types->strings = types->data + header->hdr_len + header->str_off;
	ARRAY_GROW(types->offsets, types->count, types->capacity);
	types->offsets[types->count++] = 0; /* void */
	size_t at = header->hdr_len + header->type_off, end = at + header->type_len;
	while (at < end) {
		int extra = extra_bytes((const struct btf_type *)(types->data + at));
		if (extra < 0)
			return -EPROTO;
		ARRAY_GROW(types->offsets, types->count, types->capacity);
		types->offsets[types->count++] = (uint32_t)at;
		at += sizeof(struct btf_type) + (size_t)extra;
	}
	return at == end ? 0 : -EPROTO;
}

/* Since 6.16 the file can be mapped. Before, it is read by the page: a thousand calls, and as many copies. */
static bool map_file(struct kernel_types *types, const char *path)
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;

	if (fd < 0 || fstat(fd, &status) < 0 || status.st_size <= 0)
		return false;
	void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (data == MAP_FAILED)
		return false;
	types->data = data;
	types->bytes = (size_t)status.st_size;
	types->is_mapped = true;
	return true;
}

struct kernel_types *kernel_types_read(void)
{
	static const char path[] = "/sys/kernel/btf/vmlinux";
	struct kernel_types *types = xcalloc(1, sizeof(*types));
	int error = map_file(types, path) ? 0 : read_text_at(AT_FDCWD, path, &types->data, &types->bytes);

	if (!error)
		error = find_types(types, types->bytes);
	if (!error)
		return types;
	log_debug("%s cannot be read: %s", path, strerror(-error));
	kernel_types_free(types);
	return NULL;
}

void kernel_types_free(struct kernel_types *types)
{
	if (!types)
		return;
	free(types->offsets);
	if (types->is_mapped)
		munmap(types->data, types->bytes);
	else
		free(types->data);
	free(types);
}

static int64_t find(const struct kernel_types *types, uint32_t kind, const char *name)
{
	for (size_t id = 1; id < types->count; id++) {
		const struct btf_type *type = type_at(types, id);
		if (BTF_INFO_KIND(type->info) == kind && !strcmp(name_at(types, type->name_off), name))
			return (int64_t)id;
	}
	return -ENOENT;
}

int64_t kernel_types_find_function(const struct kernel_types *types, const char *name)
{
	return find(types, BTF_KIND_FUNC, name);
}

static bool has_members(const struct btf_type *type)
{
	return BTF_INFO_KIND(type->info) == BTF_KIND_STRUCT || BTF_INFO_KIND(type->info) == BTF_KIND_UNION;
}

/* @name may go on after a point: a member of the member. */
static int find_member(const struct kernel_types *types, const struct btf_type *type, const char *name)
{
	const struct btf_member *members = (const struct btf_member *)(type + 1);
	size_t length = strcspn(name, ".");

	for (size_t i = 0; has_members(type) && i < BTF_INFO_VLEN(type->info); i++) {
		const char *member = name_at(types, members[i].name_off), *rest = NULL;
		int offset = (int)(BTF_MEMBER_BIT_OFFSET(members[i].offset) / 8);
		if (!*member)
			rest = name;
		else if (!strncmp(member, name, length) && !member[length])
			rest = name + length + !!name[length];
		if (rest && !*rest)
			return offset;
		int within = rest && members[i].type < types->count
				     ? find_member(types, type_at(types, members[i].type), rest)
				     : -ENOENT;
		if (within >= 0)
			return offset + within;
	}
	return -ENOENT;
}

int kernel_types_member(const struct kernel_types *types, const char *structure, const char *member)
{
	int64_t id = find(types, BTF_KIND_STRUCT, structure);

	return id < 0 ? (int)id : find_member(types, type_at(types, (size_t)id), member);
}
