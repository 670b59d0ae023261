/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vDSO at its place.
 *
 * The kernel maps its vDSO into every process at a random address, in front of it the pages with the clocks that its
 * code reads relative to itself. A restored task has the addresses of the dumped one everywhere (auxv, resolved
 * functions, return addresses), so the mappings are moved as a block. Their number and sizes are read from our own
 * mappings, never assumed.
 *
 * If this kernel's code is not the code in the images, the old code keeps its place and content (threads may have
 * been inside, programs have looked up its functions) but each of its functions begins with a jump to the function
 * of the same name in this kernel's vDSO, which waits at an address of its own; one that this kernel lacks answers
 * ENOSYS, which callers must expect.
 */
#include "kinds/mem/vdso.h"

#include <elf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "kernel/maps.h"
#include "kinds/mem/mem_kind.h"

enum { PAGE_BYTES = 4096 };

/* The kernel's block of criu itself. */
struct own_block {
	const struct mapping *first, *last; /* [vvar…] … [vdso] */
	uint64_t start, end, code;
};

static bool is_kernel_data(const struct mapping *mapping)
{
	return !strncmp(mapping->name, "[vvar", strlen("[vvar"));
}

static bool find_own(const struct mappings *own, struct own_block *ret_block)
{
	for (size_t i = 0; i < own->count; i++) {
		if (strcmp(own->items[i].name, "[vdso]"))
			continue;
		size_t first = i;
		while (first && is_kernel_data(&own->items[first - 1]) &&
		       own->items[first - 1].end == own->items[first].start)
			first--;
		*ret_block = (struct own_block){&own->items[first], &own->items[i], own->items[first].start,
						own->items[i].end, own->items[i].start};
		return true;
	}
	return false;
}

/* The entries of the task, NULL where it has none. */
static void find_entries(const struct restore_task *task, const VmaEntry **ret_code, const VmaEntry **ret_data)
{
	*ret_code = *ret_data = NULL;
	for (size_t i = 0; i < task->mm->n_vmas; i++) {
		if (task->mm->vmas[i]->status & VMA_STATUS_VDSO)
			*ret_code = task->mm->vmas[i];
		else if (task->mm->vmas[i]->status & VMA_STATUS_VVAR)
			*ret_data = task->mm->vmas[i];
	}
}

static bool same_layout(const struct own_block *block, const VmaEntry *code, const VmaEntry *data)
{
	uint64_t data_start = data ? data->start : code->start;

	return block->end - block->code == code->end - code->start &&
	       block->code - block->start == code->start - data_start;
}

static int read_image_code(struct restore *restore, const VmaEntry *code, char **ret_content)
{
	size_t bytes = code->end - code->start;
	_cleanup_free_ char *content = xcalloc(1, bytes);
	int error = restore_read_pages(restore, restore->self, code->start, content, bytes);

	if (!error)
		*ret_content = TAKE_POINTER(content);
	return error;
}

/* ---- functions of a vDSO image ---- */

struct elf_symbols {
	const char *base;
	size_t bytes;
	const Elf64_Sym *symbols;
	size_t count;
	const char *names;
	size_t names_bytes;
};

static const void *at(const char *base, size_t bytes, uint64_t offset, uint64_t length)
{
	return offset <= bytes && length <= bytes - offset ? base + offset : NULL;
}

/* The dynamic symbols, through the section headers; every offset is checked: an image may say anything. */
static bool find_symbols(const char *base, size_t bytes, struct elf_symbols *ret_symbols)
{
	const Elf64_Ehdr *header = at(base, bytes, 0, sizeof(*header));
	const Elf64_Shdr *sections;

	if (!header || memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_shentsize != sizeof(*sections))
		return false;
	sections = at(base, bytes, header->e_shoff, (uint64_t)header->e_shnum * sizeof(*sections));
	for (size_t i = 0; sections && i < header->e_shnum; i++) {
		if (sections[i].sh_type != SHT_DYNSYM || sections[i].sh_link >= header->e_shnum)
			continue;
		const Elf64_Shdr *names = &sections[sections[i].sh_link];
		struct elf_symbols symbols = {
			.base = base,
			.bytes = bytes,
			.symbols = at(base, bytes, sections[i].sh_offset, sections[i].sh_size),
			.count = sections[i].sh_size / sizeof(Elf64_Sym),
			.names = at(base, bytes, names->sh_offset, names->sh_size),
			.names_bytes = names->sh_size,
		};
		if (!symbols.symbols || !symbols.names || !symbols.names_bytes ||
		    symbols.names[symbols.names_bytes - 1])
			return false;
		*ret_symbols = symbols;
		return true;
	}
	return false;
}

static const char *function_name(const struct elf_symbols *symbols, size_t index)
{
	const Elf64_Sym *symbol = &symbols->symbols[index];

	if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || !symbol->st_shndx || symbol->st_name >= symbols->names_bytes)
		return NULL;
	return symbols->names + symbol->st_name;
}

static bool find_function(const struct elf_symbols *symbols, const char *name, uint64_t *ret_offset)
{
	for (size_t i = 0; i < symbols->count; i++) {
		const char *candidate = function_name(symbols, i);
		if (candidate && !strcmp(candidate, name)) {
			*ret_offset = symbols->symbols[i].st_value;
			return true;
		}
	}
	return false;
}

/* movabs $target, %rax; jmp *%rax — or mov $-ENOSYS, %eax; ret. All vDSO functions may clobber rax. */
static void patch_function(char *code, const uint64_t *target)
{
	static const uint8_t no_such_call[] = {0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3};

	if (!target) {
		memcpy(code, no_such_call, sizeof(no_such_call));
		return;
	}
	code[0] = 0x48;
	code[1] = (char)0xb8;
	memcpy(code + 2, target, sizeof(*target));
	code[10] = (char)0xff;
	code[11] = (char)0xe0;
}

static int patch_image_code(struct restore *restore, char *content, size_t bytes, const struct own_block *block,
			    uint64_t new_code)
{
	enum { PATCH_BYTES = 12 };
	struct elf_symbols old, own;

	/* The first page that a restore looks into: pages that were freed read as zeros. */
	if (bytes && !content[0] && !memcmp(content, content + 1, bytes - 1))
		return fail(&restore->failure, ENODATA, "pages-freed", "images directory",
			    "restore the newest images of the chain, if they were not restored with --auto-dedup",
			    "its pages are gone: `criu dedup` or --auto-dedup has freed them");
	if (!find_symbols(content, bytes, &old) ||
	    !find_symbols((const char *)block->code, block->end - block->code, &own))
		return fail(&restore->failure, EOPNOTSUPP, "vdso-differs", "vDSO",
			    "restore on the kernel it was dumped on",
			    "the kernel's vDSO differs from the task's, and its functions cannot be found");
	for (size_t i = 0; i < old.count; i++) {
		const char *name = function_name(&old, i);
		uint64_t offset;
		if (!name || old.symbols[i].st_value > bytes - PATCH_BYTES)
			continue;
		bool found = find_function(&own, name, &offset);
		uint64_t target = new_code + offset;
		patch_function(content + old.symbols[i].st_value, found ? &target : NULL);
	}
	return 0;
}

/* ---- the calls ---- */

static void plan_move(const struct own_block *block, uint64_t from, uint64_t to, struct program *program)
{
	for (const struct mapping *part = block->first; part <= block->last; part++) {
		uint64_t bytes = part->end - part->start, offset = part->start - block->start;
		PROGRAM_CALL(program, SYS_mremap, from + offset, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
			     to + offset);
		program_describe(program, "mremap of the vDSO");
	}
}

/* Whether the task has a mapping where the kernel has put ours. */
static bool is_in_the_way(const struct restore_task *task, const struct own_block *block)
{
	for (size_t i = 0; i < task->mm->n_vmas; i++)
		if (task->mm->vmas[i]->start < block->end && task->mm->vmas[i]->end > block->start)
			return true;
	return false;
}

int vdso_plan_leave(struct restore *restore, struct program *program, uint64_t *ret_start, uint64_t *ret_end)
{
	const VmaEntry *code, *data;
	struct own_block block;

	*ret_start = *ret_end = 0;
	find_entries(restore->self, &code, &data);
	if (!code)
		return 0;
	if (!find_own(restore->own_mappings, &block))
		return fail(&restore->failure, EOPNOTSUPP, "vdso-missing", "vDSO", "boot without vdso=0",
			    "the task has one and this kernel gives none");
	if (!is_in_the_way(restore->self, &block)) {
		*ret_start = block.start;
		*ret_end = block.end;
		return 0;
	}
	uint64_t waiting = restore_stage_address(restore, block.end - block.start);
	if (!waiting)
		return fail(&restore->failure, ENOMEM, "restore-stage", NULL, NULL, "no free addresses are left");
	plan_move(&block, block.start, waiting, program);
	*ret_start = waiting;
	*ret_end = waiting + (block.end - block.start);
	return 0;
}

int vdso_plan_arrive(struct restore *restore, uint64_t waiting, struct program *program)
{
	_cleanup_free_ char *content = NULL;
	const VmaEntry *code, *data;
	struct own_block block;

	find_entries(restore->self, &code, &data);
	if (!code || !find_own(restore->own_mappings, &block))
		return 0;
	size_t bytes = code->end - code->start;
	int error = read_image_code(restore, code, &content);
	if (error < 0)
		return error;
	if (same_layout(&block, code, data) && !memcmp(content, (const void *)block.code, bytes)) {
		plan_move(&block, waiting, data ? data->start : code->start, program);
		return 0;
	}
	error = patch_image_code(restore, content, bytes, &block, waiting + (block.code - block.start));
	if (error < 0)
		return error;
	/* The old code as plain memory at the old place; its data pages are never read again. */
	PROGRAM_CALL(program, SYS_mmap, code->start, bytes, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	program_describe(program, "mmap for the old vDSO");
	remote_t from = program_copy(program, content, bytes);
	/* A pipe of the task's own would be seen; process_vm_readv on itself copies without one. */
	struct {
		uint64_t base, length;
	} to_vector = {code->start, bytes}, from_vector = {from.address, bytes};
	remote_t to = program_copy(program, &to_vector, sizeof(to_vector));
	remote_t source = program_copy(program, &from_vector, sizeof(from_vector));
	PROGRAM_CALL(program, SYS_process_vm_readv, restore->self->pid, to.address, 1, source.address, 1, 0);
	program_describe(program, "copy of the old vDSO");
	PROGRAM_CALL(program, SYS_mprotect, code->start, bytes, PROT_READ | PROT_EXEC);
	return 0;
}
