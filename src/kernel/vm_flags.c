/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program, in C:
 *
 *	int each(struct bpf_iter__task_vma *context)
 *	{
 *		struct { u64 start, end, flags; } record;
 *
 *		if (context->vma) {
 *			record = { vma->vm_start, vma->vm_end, vma->vm_flags };
 *			bpf_seq_write(context->meta->seq, &record, sizeof(record));
 *		}
 *		return 0;
 *	}
 *
 * kernel/bpf_iterator.h tells why it is assembled here.
 */
#include "kernel/vm_flags.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/fd.h"
#include "base/log.h"
#include "kernel/bpf_iterator.h"
#include "kernel/kernel_types.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

enum { LOW_BITS = 0xff, MAY_WRITE_BIT = 5, FIRST_LEARNT_BIT = 8 };

/* What vm_flags of a mapping mean to us. */
struct meaning {
	uint32_t flags;  /* enum mapping_flags */
	uint64_t advice; /* struct mapping */
};

struct known_value {
	uint64_t value;
	struct meaning meaning;
};

/* What the program writes. */
struct record {
	uint64_t start, end, value;
};

struct vm_flags_reader {
	int program_fd;
	pthread_mutex_t lock;
	struct known_value *values; /* ascending */
	size_t count, capacity;
	uint64_t known_bits;     /* whose meaning is certain */
	struct meaning bits[64]; /* of known bits */
	struct meaning vsyscall; /* of the page that is no mapping of the process */
	atomic_uint fallbacks;
};

/* ---- the program ---- */

/* Returns the program's descriptor or -errno. */
static int load_program(const struct kernel_types *types)
{
	enum { VMA = 16 }; /* in the iterator's context */
	const int size = sizeof(struct record);

	if (!types)
		return -ENOENT;
	int64_t target = kernel_types_find_function(types, "bpf_iter_task_vma");
	int start = kernel_types_member(types, "vm_area_struct", "vm_start");
	int end = kernel_types_member(types, "vm_area_struct", "vm_end");
	int flags = kernel_types_member(types, "vm_area_struct", "vm_flags");
	if (target < 0 || start < 0 || end < 0 || flags < 0)
		return -EOPNOTSUPP;
	const struct bpf_insn program[] = {
		bpf_load(BPF_REG_6, BPF_REG_1, VMA),
		bpf_skip_if_zero(BPF_REG_6, 12), /* none: the end */
		bpf_load(BPF_REG_7, BPF_REG_1, BPF_CONTEXT_META),
		bpf_load(BPF_REG_2, BPF_REG_6, start),
		bpf_store(BPF_REG_10, -size, BPF_REG_2),
		bpf_load(BPF_REG_2, BPF_REG_6, end),
		bpf_store(BPF_REG_10, -size + 8, BPF_REG_2),
		bpf_load(BPF_REG_2, BPF_REG_6, flags),
		bpf_store(BPF_REG_10, -size + 16, BPF_REG_2),
		BPF_WRITE_AND_END(size),
	};
	return bpf_iterator_load(target, program, ARRAY_SIZE(program), "criu_vm_flags");
}

/*
 * How many records are in order. Linux 6.18 begins anew at the end of a process whose records did not fit into one
 * read(2), and would go on for ever.
 */
static size_t count_ascending(const struct record *records, size_t from, size_t count)
{
	for (size_t i = from ? from : 1; i < count; i++)
		if (records[i].start < records[i - 1].end)
			return i;
	return count;
}

/* All records of one process; the caller frees them. Returns 0 or -errno. */
static int read_records(const struct vm_flags_reader *reader, pid_t pid, struct record **ret_records, size_t *ret_count)
{
	_cleanup_fd_ int fd = bpf_iterator_open(reader->program_fd, pid);
	size_t room = 256 * sizeof(struct record), bytes = 0, good = 0;
	_cleanup_free_ char *data = xcalloc(1, room);
	ssize_t got;

	if (fd < 0)
		return fd;
	while ((got = read(fd, data + bytes, room - bytes)) != 0) {
		if (got < 0 && errno != EINTR && errno != EAGAIN)
			return -errno;
		bytes += got > 0 ? (size_t)got : 0;
		size_t count = bytes / sizeof(struct record);
		good = count_ascending((struct record *)data, good, count);
		if (good < count)
			break;
		if (bytes == room)
			data = xrealloc_array(data, room *= 2, 1);
	}
	*ret_count = good;
	*ret_records = (struct record *)TAKE_POINTER(data);
	return 0;
}

/* ---- what is known ---- */

static struct meaning meaning_of(const struct mapping *mapping)
{
	return (struct meaning){mapping->flags, mapping->advice};
}

static bool is_same(struct meaning left, struct meaning right)
{
	return left.flags == right.flags && left.advice == right.advice;
}

static struct known_value *find_value(const struct vm_flags_reader *reader, uint64_t value)
{
	size_t low = 0, high = reader->count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		if (reader->values[middle].value < value)
			low = middle + 1;
		else
			high = middle;
	}
	return &reader->values[low]; /* or the place where it belongs */
}

static bool has_value(const struct vm_flags_reader *reader, const struct known_value *place, uint64_t value)
{
	return place < reader->values + reader->count && place->value == value;
}

static void learn_value(struct vm_flags_reader *reader, uint64_t value, struct meaning meaning)
{
	size_t at = (size_t)(find_value(reader, value) - reader->values);

	if (has_value(reader, &reader->values[at], value))
		return;
	ARRAY_GROW(reader->values, reader->count, reader->capacity);
	memmove(&reader->values[at + 1], &reader->values[at], (reader->count - at) * sizeof(*reader->values));
	reader->values[at] = (struct known_value){value, meaning};
	reader->count++;
}

static uint64_t high_bits(uint64_t value)
{
	return value & ~(uint64_t)LOW_BITS;
}

/*
 * A bit means what two values differ in that differ in nothing but this bit; and it means nothing if all values with it
 * have nothing in common. Bits that only ever come together (a device's) stay unknown. The lowest eight are not learnt:
 * protections and what they may become have been the same since Linux 2.6, and mprotect(2) relies on it.
 */
static void learn_bit(struct vm_flags_reader *reader, int bit)
{
	const struct known_value *values = reader->values;
	struct meaning common = {~(uint32_t)MAPPING_MAY_WRITE, UINT64_MAX};
	bool seen = false;

	for (size_t i = 0; i < reader->count; i++) {
		if (!(values[i].value >> bit & 1))
			continue;
		seen = true;
		common.flags &= values[i].meaning.flags;
		common.advice &= values[i].meaning.advice;
		for (size_t other = 0; other < reader->count; other++) {
			if ((high_bits(values[i].value) ^ high_bits(values[other].value)) != 1ULL << bit)
				continue;
			reader->known_bits |= 1ULL << bit;
			reader->bits[bit].flags =
				values[i].meaning.flags & ~values[other].meaning.flags & ~(uint32_t)MAPPING_MAY_WRITE;
			reader->bits[bit].advice = values[i].meaning.advice & ~values[other].meaning.advice;
		}
	}
	if (seen && !common.flags && !common.advice)
		reader->known_bits |= 1ULL << bit;
}

static struct meaning add_up(const struct vm_flags_reader *reader, uint64_t value)
{
	struct meaning sum = {};

	for (int bit = 0; bit < 64; bit++)
		if (value >> bit & 1) {
			sum.flags |= reader->bits[bit].flags;
			sum.advice |= reader->bits[bit].advice;
		}
	return sum;
}

/* The bits must explain every value they were learnt from. */
static bool is_consistent(const struct vm_flags_reader *reader)
{
	for (size_t i = 0; i < reader->count; i++)
		if (!(reader->values[i].value & ~reader->known_bits) &&
		    !is_same(add_up(reader, reader->values[i].value), reader->values[i].meaning))
			return false;
	return true;
}

static void learn_bits(struct vm_flags_reader *reader)
{
	reader->known_bits = LOW_BITS;
	reader->bits[MAY_WRITE_BIT].flags = MAPPING_MAY_WRITE;
	for (int bit = FIRST_LEARNT_BIT; bit < 64; bit++)
		learn_bit(reader, bit);
	if (!is_consistent(reader))
		reader->known_bits = 0; /* whole values only */
}

static bool understand(const struct vm_flags_reader *reader, uint64_t value, struct meaning *ret_meaning)
{
	const struct known_value *known = find_value(reader, value);

	if (has_value(reader, known, value)) {
		*ret_meaning = known->meaning;
		return true;
	}
	if (value & ~reader->known_bits)
		return false;
	*ret_meaning = add_up(reader, value);
	return true;
}

/* Both ascend. A mapping of which both tell the same range. */
static void learn_from(struct vm_flags_reader *reader, const struct mappings *mappings, const struct record *records,
		       size_t count)
{
	size_t at = 0;

	for (size_t i = 0; i < mappings->count; i++) {
		const struct mapping *mapping = &mappings->items[i];
		while (at < count && records[at].start < mapping->start)
			at++;
		if (at < count && records[at].start == mapping->start && records[at].end == mapping->end)
			learn_value(reader, records[at].value, meaning_of(mapping));
		else if (!strcmp(mapping->name, "[vsyscall]"))
			reader->vsyscall = meaning_of(mapping);
	}
}

/* ---- samples ---- */

/* Mappings of ours with one thing each that programs like to set. */
static const struct sample {
	int protection, flags, advice; /* advice -1 = none */
	int lock;                      /* flags of mlock2(), -1 = not */
	uint64_t userfault;            /* UFFDIO_REGISTER_MODE_…, 0 = not */
} samples[] = {
	{PROT_NONE, 0, -1, -1},
	{PROT_READ | PROT_WRITE, 0, -1, -1},
	{PROT_READ | PROT_WRITE | PROT_EXEC, 0, -1, -1},
	{PROT_READ | PROT_WRITE, MAP_NORESERVE, -1, -1},
	{PROT_READ | PROT_WRITE, MAP_GROWSDOWN, -1, -1},
	{PROT_READ | PROT_WRITE, 0, MADV_RANDOM, -1},
	{PROT_READ | PROT_WRITE, 0, MADV_SEQUENTIAL, -1},
	{PROT_READ | PROT_WRITE, 0, MADV_DONTFORK, -1},
	{PROT_READ | PROT_WRITE, 0, MADV_MERGEABLE, -1},
	{PROT_READ | PROT_WRITE, 0, MADV_HUGEPAGE, -1},
	{PROT_READ | PROT_WRITE, 0, MADV_NOHUGEPAGE, -1},
	{PROT_READ | PROT_WRITE, 0, MADV_DONTDUMP, -1},
	{PROT_READ | PROT_WRITE, 0, MADV_WIPEONFORK, -1},
	{PROT_READ | PROT_WRITE, 0, -1, 0},
	{PROT_READ | PROT_WRITE, 0, -1, MLOCK_ONFAULT},
	{PROT_READ | PROT_WRITE, MAP_SHARED, -1, -1},
	{PROT_READ | PROT_WRITE, 0, -1, -1, UFFDIO_REGISTER_MODE_MISSING},
	{PROT_READ | PROT_WRITE, 0, -1, -1, UFFDIO_REGISTER_MODE_WP}, /* memory that a migration tracks */
};

enum { PAGE_BYTES = 4096 };

/* Pages between them keep neighbours apart. What this kernel does not know is left out: its bit stays unknown. */
static void *make_samples(int userfault_fd, size_t *ret_bytes)
{
	size_t bytes = 2 * ARRAY_SIZE(samples) * PAGE_BYTES;
	char *area = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	*ret_bytes = bytes;
	if (area == MAP_FAILED)
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(samples); i++) {
		const struct sample *sample = &samples[i];
		int flags = sample->flags & MAP_SHARED ? sample->flags : sample->flags | MAP_PRIVATE;
		char *page = area + (2 * i + 1) * PAGE_BYTES;
		if (mmap(page, PAGE_BYTES, sample->protection, flags | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			continue;
		if (sample->advice >= 0)
			madvise(page, PAGE_BYTES, sample->advice);
		if (sample->lock >= 0)
			mlock2(page, PAGE_BYTES, (unsigned)sample->lock);
		struct uffdio_register range = {.range = {(uint64_t)page, PAGE_BYTES}, .mode = sample->userfault};
		if (sample->userfault)
			ioctl(userfault_fd, UFFDIO_REGISTER, &range);
	}
	return area;
}

static int learn_from_ourselves(struct vm_flags_reader *reader)
{
	_cleanup_fd_ int proc_dirfd = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_free_ struct record *records = NULL;
	struct mappings mappings = {};
	size_t count = 0, bytes;
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
	_cleanup_fd_ int userfault_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (userfault_fd >= 0)
		ioctl(userfault_fd, UFFDIO_API, &api);
	void *area = make_samples(userfault_fd, &bytes);
	int error = proc_dirfd < 0 ? -errno : mappings_read(proc_dirfd, &mappings);

	/* Reading takes memory itself, in mappings that differ between both: only equal ones are compared. */
	if (!error)
		error = read_records(reader, getpid(), &records, &count);
	if (!error) {
		learn_from(reader, &mappings, records, count);
		learn_bits(reader);
	}
	mappings_free(&mappings);
	if (area)
		munmap(area, bytes);
	return error ? error : reader->count ? 0 : -EPROTO;
}

/* ---- reading ---- */

/* Fills in what smaps would have said. Returns whether all of it is understood. */
static bool fill_in(const struct vm_flags_reader *reader, struct mappings *mappings, const struct record *records,
		    size_t count)
{
	size_t at = 0;

	for (size_t i = 0; i < mappings->count; i++) {
		struct mapping *mapping = &mappings->items[i];
		struct meaning meaning = reader->vsyscall;
		if (strcmp(mapping->name, "[vsyscall]") != 0) {
			if (at == count || records[at].start != mapping->start || records[at].end != mapping->end ||
			    !understand(reader, records[at].value, &meaning))
				return false;
			at++;
		}
		mapping->flags = meaning.flags;
		mapping->advice = meaning.advice;
	}
	return at == count;
}

int vm_flags_mappings_read(struct vm_flags_reader *reader, pid_t pid, int proc_dirfd, bool stands,
			   struct mappings *ret_mappings)
{
	_cleanup_free_ struct record *records = NULL;
	struct mappings mappings = {};
	size_t count = 0;

	if (!reader || read_records(reader, pid, &records, &count) < 0)
		return mappings_read(proc_dirfd, ret_mappings);
	int error = mappings_read_short(proc_dirfd, &mappings);
	if (error < 0)
		return error;
	pthread_mutex_lock(&reader->lock);
	bool good = fill_in(reader, &mappings, records, count);
	pthread_mutex_unlock(&reader->lock);
	if (good) {
		*ret_mappings = mappings;
		return 0;
	}
	mappings_free(&mappings);
	atomic_fetch_add(&reader->fallbacks, 1);
	error = mappings_read(proc_dirfd, ret_mappings);
	/* Between both reads a process that runs may have changed what the second one tells. */
	if (!error && stands) {
		pthread_mutex_lock(&reader->lock);
		learn_from(reader, ret_mappings, records, count);
		learn_bits(reader);
		pthread_mutex_unlock(&reader->lock);
	}
	return error;
}

unsigned vm_flags_fallbacks(const struct vm_flags_reader *reader)
{
	return atomic_load(&reader->fallbacks);
}

/* ---- life ---- */

struct vm_flags_reader *vm_flags_open(const struct kernel_types *types)
{
	struct vm_flags_reader *reader = xcalloc(1, sizeof(*reader));

	pthread_mutex_init(&reader->lock, NULL);
	reader->program_fd = load_program(types);
	int error = reader->program_fd < 0 ? reader->program_fd : learn_from_ourselves(reader);
	if (!error)
		return reader;
	log_debug("mappings are read from smaps: %s", strerror(-error));
	vm_flags_close(reader);
	return NULL;
}

void vm_flags_close(struct vm_flags_reader *reader)
{
	if (!reader)
		return;
	log_debug("vm_flags: %zu values, bits %lx are known, %u processes were read from smaps", reader->count,
		  reader->known_bits, atomic_load(&reader->fallbacks));
	close_fd_pointer(&reader->program_fd);
	pthread_mutex_destroy(&reader->lock);
	free(reader->values);
	free(reader);
}
