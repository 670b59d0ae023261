/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mapping the memory of a task while it is still a process of criu.
 *
 * Mappings go to their final addresses at once, next to criu's own; the few that collide with criu are staged
 * elsewhere and moved at the switch. Private memory comes before the task forks, so that children inherit it: a child
 * keeps an inherited mapping that is its own too and replaces only the pages that differ. Everything that needs the
 * descriptors of the tree (shared memory, memfds) comes after they exist.
 */
#include "restore/memory.h"
#include "restore/lazy.h"
#include "restore/preload.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "kernel/uapi.h"
#include "kinds/mem/mem_kind.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum {
	PAGE_BYTES = 4096,
	KEPT_FLAGS = MAP_PRIVATE | MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_NORESERVE | 0x08 /* DROPPABLE */,
};

/* Opened for one mapping and kept for the next: mappings of one file come in rows. */
struct open_file {
	int fd;
	uint32_t id;
	uint32_t flags;
};

static bool is_special(const VmaEntry *vma)
{
	const struct mem_kind *kind = mem_kind_of_entry(vma);

	return !kind || kind->is_special;
}

bool memory_is_early(const VmaEntry *vma)
{
	return !is_special(vma) && !(vma->status & (VMA_STATUS_MEMFD | VMA_STATUS_FILE_SHARED));
}

uint32_t memory_birth_flags(const VmaEntry *vma)
{
	return vma->flags & KEPT_FLAGS;
}

static bool survives_fork(const VmaEntry *vma)
{
	return !(vma->madv & (1ULL << MADV_DONTFORK | 1ULL << MADV_WIPEONFORK));
}

static int fail_vma(struct restore *restore, const VmaEntry *vma)
{
	return fail_in(&restore->failure, "%s: mapping %lx-%lx", restore_task_name(restore, restore->self), vma->start,
		       vma->end);
}

/* The parent's mapping that @vma is, or is a part of; its index, or -1. */
static ssize_t find_inherited(const struct restore_task *parent, const VmaEntry *vma)
{
	size_t low = 0, high = parent->mm->n_vmas;

	while (low < high) {
		size_t middle = (low + high) / 2;
		const VmaEntry *other = parent->mm->vmas[middle];
		if (vma->start < other->start) {
			high = middle;
		} else if (vma->start >= other->end) {
			low = middle + 1;
		} else {
			bool same = vma->end <= other->end && memory_is_early(other) && survives_fork(other) &&
				    survives_fork(vma) && (vma->flags & KEPT_FLAGS) == (other->flags & KEPT_FLAGS) &&
				    (vma->status & ~(uint32_t)VMA_STATUS_HEAP) ==
					    (other->status & ~(uint32_t)VMA_STATUS_HEAP) &&
				    vma->shmid == other->shmid;
			if (same && (vma->status & VMA_STATUS_FILE_PRIVATE))
				same = vma->pgoff - other->pgoff == vma->start - other->start;
			return same ? (ssize_t)middle : -1;
		}
	}
	return -1;
}

static int open_for(struct restore *restore, const VmaEntry *vma, struct open_file *file)
{
	if (file->fd >= 0 && file->id == vma->shmid && file->flags == vma->fdflags)
		return 0;
	if (file->fd >= 0)
		close(file->fd);
	file->fd = -1;
	int error = mem_kind_of_entry(vma)->open(restore, vma, &file->fd);
	file->id = vma->shmid;
	file->flags = vma->fdflags;
	return error;
}

/* Anonymous memory without pages keeps its protection: making it writable would charge it. */
static int loading_protection(const VmaEntry *vma, bool has_pages)
{
	return has_pages && !(vma->flags & MAP_SHARED) ? (int)vma->prot | PROT_WRITE | PROT_READ : (int)vma->prot;
}

bool memory_has_pages(const struct restore_memory *memory, const VmaEntry *vma)
{
	size_t index = page_places_find(memory->places, vma->start);

	return index < memory->places->count && memory->places->items[index].address < vma->end;
}

static int map_vma(struct restore *restore, size_t index, struct open_file *file)
{
	const VmaEntry *vma = restore->self->mm->vmas[index];
	struct restore_memory *memory = restore->self->memory;
	int protection = loading_protection(vma, memory_has_pages(memory, vma));
	int flags = vma->flags & KEPT_FLAGS, fd = -1;
	size_t bytes = vma->end - vma->start;

	if (!(flags & MAP_ANONYMOUS)) {
		int error = open_for(restore, vma, file);
		if (error < 0)
			return error;
		fd = file->fd;
	}
	void *address = mmap((void *)vma->start, bytes, protection, flags | MAP_FIXED_NOREPLACE, fd, vma->pgoff);
	if (address == MAP_FAILED && errno == EEXIST) {
		uint64_t stage = restore_stage_address(restore, bytes);
		if (!stage)
			return fail(&restore->failure, ENOMEM, "restore-map", NULL, NULL, "no free addresses are left");
		address = mmap((void *)stage, bytes, protection, flags | MAP_FIXED_NOREPLACE, fd, vma->pgoff);
	}
	if (address == MAP_FAILED)
		return fail_errno(&restore->failure, errno, "restore-map", NULL,
				  errno == ENOMEM
					  ? "there may be too many mappings (vm.max_map_count) or too little memory"
					  : NULL,
				  "cannot map it");
	memory->placed[index] = (uint64_t)address;
	return 0;
}

static int protect_for_loading(struct restore *restore, const VmaEntry *vma, uint64_t address)
{
	int wanted = loading_protection(vma, true);

	if (mprotect((void *)address, vma->end - vma->start, wanted) < 0)
		return fail_errno(&restore->failure, errno, "restore-protect", NULL, NULL, "cannot make it writable");
	return 0;
}

/* Takes away what came with the fork and is not this task's. Both lists ascend. */
static void unmap_foreign(const struct restore_task *task, const struct restore_task *parent, const ssize_t *origin)
{
	size_t own = 0;

	for (size_t p = 0; p < parent->mm->n_vmas; p++) {
		const VmaEntry *vma = parent->mm->vmas[p];
		uint64_t at = vma->start, shift = parent->memory->placed[p] - vma->start;
		if (!memory_is_early(vma) || !survives_fork(vma))
			continue;
		while (own < task->mm->n_vmas && task->mm->vmas[own]->end <= vma->start)
			own++;
		for (size_t i = own; i < task->mm->n_vmas && task->mm->vmas[i]->start < vma->end; i++) {
			if (origin[i] != (ssize_t)p)
				continue;
			if (task->mm->vmas[i]->start > at)
				munmap((void *)(at + shift), task->mm->vmas[i]->start - at);
			at = task->mm->vmas[i]->end;
		}
		if (at < vma->end)
			munmap((void *)(at + shift), vma->end - at);
	}
}

static void find_origins(const struct restore *restore, const struct restore_task *task,
			 const struct restore_task *from, ssize_t *origin)
{
	for (size_t i = 0; i < task->mm->n_vmas; i++)
		origin[i] = memory_is_early(task->mm->vmas[i]) && !lazy_mapping(restore, task->mm->vmas[i]) &&
					    !lazy_pages_missing(restore, task, task->mm->vmas[i])
				    ? find_inherited(from, task->mm->vmas[i])
				    : -1;
	unmap_foreign(task, from, origin);
}

/* The root of a migrated tree has its memory already. */
static bool is_preloaded(const struct restore *restore)
{
	return restore->options->preload && !restore->fork_origin;
}

static const struct page_places *inherited_places(const struct restore_memory *from)
{
	return from->given ? from->given : from->places;
}

int memory_restore_private(struct restore *restore)
{
	const struct restore_task *task = restore->self, *from = restore->fork_origin;
	struct restore_memory *memory = task->memory;
	_cleanup_free_ ssize_t *origin = xcalloc(task->mm->n_vmas, sizeof(*origin));
	struct open_file file = {.fd = -1};
	int error = lazy_prepare(restore);

	if (from)
		find_origins(restore, task, from, origin);
	else
		memset(origin, 0xff, task->mm->n_vmas * sizeof(*origin));
	if (!error && is_preloaded(restore))
		error = preload_adopt(restore);
	for (size_t i = 0; i < task->mm->n_vmas && !error; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		if (!memory_is_early(vma))
			continue;
		bool loads = memory_has_pages(memory, vma) && !lazy_mapping(restore, vma);
		if (memory->inherited[i]) {
			error = pages_load(restore, i, memory->places, memory->preloaded->places);
			continue;
		}
		memory->inherited[i] = origin[i] >= 0;
		if (memory->inherited[i]) {
			uint64_t offset = vma->start - from->mm->vmas[origin[i]]->start;
			memory->placed[i] = from->memory->placed[origin[i]] + offset;
			if (loads)
				error = protect_for_loading(restore, vma, memory->placed[i]);
		} else {
			error = map_vma(restore, i, &file);
		}
		if (!error && (loads || memory->inherited[i]))
			error = pages_load(restore, i, memory->places,
					   memory->inherited[i] ? inherited_places(from->memory) : NULL);
		if (error < 0)
			error = fail_vma(restore, vma);
	}
	close_fd_pointer(&file.fd);
	return error;
}

int memory_restore_shared(struct restore *restore)
{
	struct restore_task *task = restore->self;
	struct open_file file = {.fd = -1};
	int error = 0;

	for (size_t i = 0; i < task->mm->n_vmas && !error; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		if (is_special(vma) || memory_is_early(vma))
			continue;
		error = map_vma(restore, i, &file);
		if (!error && !(vma->flags & MAP_SHARED) && memory_has_pages(task->memory, vma))
			error = pages_load(restore, i, task->memory->places, NULL);
		if (error < 0)
			error = fail_vma(restore, vma);
	}
	close_fd_pointer(&file.fd);
	return error;
}

/* madvise values that a mapping keeps, as bits of vma_entry.madv. */
static int advise(struct restore *restore, const VmaEntry *vma, uint64_t address)
{
	for (int advice = 0; advice < 64; advice++) {
		if (!(vma->madv >> advice & 1))
			continue;
		if (madvise((void *)address, vma->end - vma->start, advice) < 0)
			return fail_errno(&restore->failure, errno, "restore-advice", NULL, NULL, "madvise(%d)",
					  advice);
	}
	return 0;
}

static int install_guards(struct restore *restore, const VmaEntry *vma, uint64_t address)
{
	for (size_t i = 0; i + 1 < vma->n_guards; i += 2) {
		uint64_t start = vma->guards[i], end = vma->guards[i + 1];
		if (start < vma->start || end > vma->end || start >= end)
			return fail(&restore->failure, EINVAL, "image-range", NULL, NULL,
				    "a guard region lies outside it");
		if (madvise((void *)(address + (start - vma->start)), end - start, MADV_GUARD_INSTALL) < 0)
			return fail_errno(&restore->failure, errno, "restore-guard", NULL,
					  "Linux 6.13 or newer is needed", "cannot install its guard region");
	}
	return 0;
}

static int lock(struct restore *restore, const VmaEntry *vma, uint64_t address)
{
	if (!(vma->flags & MAP_LOCKED))
		return 0;
	int flags = vma->has_lock_on_fault && vma->lock_on_fault ? MLOCK_ONFAULT : 0;
	/* A locked mapping without access cannot be populated: the kernel says so and locks it all the same. */
	if (mlock2((void *)address, vma->end - vma->start, flags) < 0 && errno != ENOMEM)
		return fail_errno(&restore->failure, errno, "restore-lock", NULL, "raise the limit: ulimit -l",
				  "cannot lock it in memory");
	return 0;
}

/* Without an advice on the mapping huge pages come by collapsing what was loaded: best effort, as in the source. */
static void collapse_huge(const struct restore_memory *memory, const VmaEntry *vma, uint64_t address)
{
	if (!memory->places->has_huge || vma->madv >> MADV_HUGEPAGE & 1)
		return;
	for (size_t i = 0; i < memory->places->count; i++) {
		const struct page_place *place = &memory->places->items[i];
		if (place->huge && place->address >= vma->start && place->address < vma->end)
			madvise((void *)(address + (place->address - vma->start)), place->pages * PAGE_BYTES,
				MADV_COLLAPSE);
	}
}

int memory_finish(struct restore *restore)
{
	const struct restore_task *task = restore->self;

	for (size_t i = 0; i < task->mm->n_vmas; i++) {
		const VmaEntry *vma = task->mm->vmas[i];
		uint64_t address = task->memory->placed[i];
		bool loaded;
		int error = 0;
		if (is_special(vma))
			continue;
		loaded = memory_has_pages(task->memory, vma);
		if (loaded && !lazy_mapping(restore, vma))
			collapse_huge(task->memory, vma, address);
		if ((loaded || task->memory->inherited[i]) &&
		    mprotect((void *)address, vma->end - vma->start, vma->prot) < 0)
			error = fail_errno(&restore->failure, errno, "restore-protect", NULL, NULL,
					   "cannot set its protection");
		if (!error)
			error = advise(restore, vma, address);
		if (!error)
			error = install_guards(restore, vma, address);
		if (!error)
			error = lock(restore, vma, address);
		if (error < 0)
			return fail_vma(restore, vma);
	}
	return 0;
}
