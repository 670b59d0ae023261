/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads pstree, core, mm, pagemap and fdinfo images of each process into JSON. Files that a zombie or an incomplete
 * dump does not have are left out; files that are there must be whole.
 */
#include "image/show_read.h"

#include <inttypes.h>
#include <string.h>

#include "base/fd.h"
#include "image/display.h"
#include "image/image_schema.h"

#define SHOWN_PAGE_BYTES 4096u

/* Opens a file that may be absent: then *ret_image is NULL. */
static int open_if_there(int dirfd, struct failure *failure, enum image_kind kind, uint64_t id,
			 struct image **ret_image)
{
	*ret_image = NULL;
	int error = image_open(dirfd, failure, kind, id, ret_image);

	return error == -ENOENT && !failure_is_set(failure) ? 0 : error;
}

/* The only message of a file that may be absent: then *ret_message is NULL. */
static int read_if_there(int dirfd, struct failure *failure, enum image_kind kind, uint64_t id,
			 ProtobufCMessage **ret_message)
{
	struct image *image;
	int result = open_if_there(dirfd, failure, kind, id, &image);

	*ret_message = NULL;
	if (result || !image)
		return result;
	result = image_read(image, ret_message);
	image_close(&image);
	return result < 0 ? result : 0;
}

static void set_hex(json_t *object, const char *key, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "0x%" PRIx64, value);
	json_object_set_new(object, key, json_string(text));
}

static json_t *read_mapping(const VmaEntry *vma)
{
	const char protection[] = {vma->prot & 1 ? 'r' : '-', vma->prot & 2 ? 'w' : '-', vma->prot & 4 ? 'x' : '-',
				   vma->flags & 1 ? 's' : 'p', '\0'};
	json_t *mapping = json_object();
	char status[512];

	set_hex(mapping, "start", vma->start);
	set_hex(mapping, "end", vma->end);
	json_object_set_new(mapping, "protection", json_string(protection));
	display_number(display_of("vma_entry", "status"), vma->status, status, sizeof(status));
	json_object_set_new(mapping, "content", json_string(status));
	return mapping;
}

static void set_mappings(json_t *process, json_t *memory, const MmEntry *mm)
{
	json_t *mappings = json_array();
	uint64_t bytes = 0;

	for (size_t i = 0; i < mm->n_vmas; i++) {
		bytes += mm->vmas[i]->end - mm->vmas[i]->start;
		json_array_append_new(mappings, read_mapping(mm->vmas[i]));
	}
	json_object_set_new(memory, "mappings", json_integer(mm->n_vmas));
	json_object_set_new(memory, "bytes", json_integer(bytes));
	json_object_set_new(process, "mappings", mappings);
}

struct page_counts {
	uint64_t present, shared, in_parent, lazy;
};

static void count_pages(const PagemapEntry *entry, struct page_counts *counts)
{
	uint64_t pages = entry->has_nr_pages ? entry->nr_pages : entry->compat_nr_pages;
	uint32_t flags = entry->flags;

	/* Old images have no flags: what is not in the parent images is present. */
	if (!entry->has_flags)
		flags = entry->has_in_parent && entry->in_parent ? PAGEMAP_IN_PARENT : PAGEMAP_PRESENT;
	if (flags & PAGEMAP_PRESENT)
		counts->present += pages;
	if (flags & PAGEMAP_SHARED)
		counts->shared += pages;
	if (flags & PAGEMAP_IN_PARENT)
		counts->in_parent += pages;
	if (flags & PAGEMAP_LAZY)
		counts->lazy += pages;
}

static int read_pagemap(int dirfd, struct failure *failure, uint32_t pid, json_t *memory)
{
	struct page_counts counts = {0};
	ProtobufCMessage *message = NULL;
	struct image *image;
	int result = open_if_there(dirfd, failure, IMAGE_PAGEMAP, pid, &image);

	if (result)
		return result;
	while (image && (result = image_read(image, &message)) > 0) {
		if (message->descriptor == &pagemap_entry__descriptor)
			count_pages((const PagemapEntry *)message, &counts);
		image_message_free(message);
	}
	image_close(&image);
	json_object_set_new(memory, "pages_present", json_integer(counts.present));
	json_object_set_new(memory, "pages_shared", json_integer(counts.shared));
	json_object_set_new(memory, "pages_in_parent", json_integer(counts.in_parent));
	json_object_set_new(memory, "pages_lazy", json_integer(counts.lazy));
	json_object_set_new(memory, "stored_bytes", json_integer(counts.present * SHOWN_PAGE_BYTES));
	return result;
}

static int read_memory(int dirfd, struct failure *failure, uint32_t pid, json_t *process)
{
	ProtobufCMessage *message;
	int error = read_if_there(dirfd, failure, IMAGE_MM, pid, &message);

	if (error || !message)
		return error;
	json_t *memory = json_object();
	set_mappings(process, memory, (const MmEntry *)message);
	image_message_free(message);
	json_object_set_new(process, "memory", memory);
	return read_pagemap(dirfd, failure, pid, memory);
}

static json_t *read_descriptor(const FdinfoEntry *entry, const json_t *files)
{
	const ProtobufCEnumValue *type = protobuf_c_enum_descriptor_get_value(&fd_types__descriptor, entry->type);
	json_t *descriptor = json_object();
	char id[16];

	snprintf(id, sizeof(id), "%u", entry->id);
	json_t *description = json_object_get(json_object_get(files, id), "description");
	json_object_set_new(descriptor, "fd", json_integer(entry->fd));
	json_object_set_new(descriptor, "id", json_integer(entry->id));
	json_object_set_new(descriptor, "type", json_string(type ? type->name : "?"));
	if (description)
		json_object_set(descriptor, "description", description);
	return descriptor;
}

static int read_descriptors(int dirfd, struct failure *failure, uint32_t files_id, const json_t *files, json_t *process)
{
	ProtobufCMessage *message = NULL;
	struct image *image;
	int result = open_if_there(dirfd, failure, IMAGE_FDINFO, files_id, &image);

	if (result)
		return result;
	json_t *descriptors = json_array();
	while (image && (result = image_read(image, &message)) > 0) {
		json_array_append_new(descriptors, read_descriptor((const FdinfoEntry *)message, files));
		image_message_free(message);
	}
	image_close(&image);
	json_object_set_new(process, "files", descriptors);
	return result;
}

/* The number of the process's descriptor table: of its own image, or inside core in old dumps. 0 = it has none. */
static int read_files_id(int dirfd, struct failure *failure, uint32_t pid, const CoreEntry *core, uint32_t *ret_id)
{
	ProtobufCMessage *message;
	int error = read_if_there(dirfd, failure, IMAGE_IDS, pid, &message);

	if (error)
		return error;
	*ret_id = message ? ((const TaskKobjIdsEntry *)message)->files_id : core && core->ids ? core->ids->files_id : 0;
	image_message_free(message);
	return 0;
}

/* The states of task_core_entry: 2 and 6 both are zombies, kept for their exit status. */
static const char *state_name(uint32_t state)
{
	switch (state) {
	case 1:
		return "alive";
	case 2:
	case 6:
		return "zombie";
	case 3:
		return "stopped";
	default:
		return "?";
	}
}

static int read_thread(int dirfd, struct failure *failure, uint32_t tid, json_t *threads)
{
	ProtobufCMessage *message;
	int error = read_if_there(dirfd, failure, IMAGE_CORE, tid, &message);

	if (error)
		return error;
	const CoreEntry *core = (const CoreEntry *)message;
	json_t *thread = json_object();
	json_object_set_new(thread, "tid", json_integer(tid));
	if (core && core->thread_core && core->thread_core->comm)
		json_object_set_new(thread, "comm",
				    json_name(core->thread_core->comm, strlen(core->thread_core->comm)));
	json_array_append_new(threads, thread);
	image_message_free(message);
	return 0;
}

static int read_core(int dirfd, struct failure *failure, const PstreeEntry *entry, const json_t *files, json_t *process)
{
	ProtobufCMessage *message;
	uint32_t files_id = 0;
	int error = read_if_there(dirfd, failure, IMAGE_CORE, entry->pid, &message);

	if (error)
		return error;
	const CoreEntry *core = (const CoreEntry *)message;
	if (core && core->tc) {
		json_object_set_new(process, "comm", json_name(core->tc->comm, strlen(core->tc->comm)));
		json_object_set_new(process, "state", json_string(state_name(core->tc->task_state)));
	}
	error = read_files_id(dirfd, failure, entry->pid, core, &files_id);
	image_message_free(message);
	if (!error && files_id)
		error = read_descriptors(dirfd, failure, files_id, files, process);
	return error;
}

static int read_process(int dirfd, struct failure *failure, const PstreeEntry *entry, const json_t *files,
			json_t *process)
{
	json_t *threads = json_array();
	int error = read_core(dirfd, failure, entry, files, process);

	json_object_set_new(process, "pid", json_integer(entry->pid));
	json_object_set_new(process, "ppid", json_integer(entry->ppid));
	json_object_set_new(process, "pgid", json_integer(entry->pgid));
	json_object_set_new(process, "sid", json_integer(entry->sid));
	json_object_set_new(process, "threads", threads);
	/* A zombie's only thread is written as 0 or as its pid. */
	for (size_t i = 0; i < entry->n_threads && !error; i++)
		if (entry->threads[i])
			error = read_thread(dirfd, failure, entry->threads[i], threads);
	return error ? error : read_memory(dirfd, failure, entry->pid, process);
}

static int read_tree(int dirfd, struct failure *failure, const json_t *files, json_t *processes)
{
	struct image *image = NULL;
	ProtobufCMessage *message = NULL;
	int result = image_open(dirfd, failure, IMAGE_PSTREE, 0, &image);

	if (result == -ENOENT && !failure_is_set(failure))
		return fail(failure, ENOENT, "image-missing", "pstree.img", "is this a directory of images?",
			    "there is no such image");
	while (!result && (result = image_read(image, &message)) > 0) {
		json_t *process = json_object();
		json_array_append_new(processes, process);
		result = read_process(dirfd, failure, (const PstreeEntry *)message, files, process);
		image_message_free(message);
	}
	image_close(&image);
	return result;
}

int images_read(int dirfd, struct failure *failure, json_t **ret_images)
{
	json_t *images = json_object(), *processes = json_array(), *files = NULL;
	int error = images_read_files(dirfd, failure, &files);

	json_object_set_new(images, "processes", processes);
	if (!error)
		error = read_tree(dirfd, failure, files, processes);
	json_decref(files);
	if (error) {
		json_decref(images);
		return error;
	}
	*ret_images = images;
	return 0;
}
