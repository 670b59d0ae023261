/* SPDX-License-Identifier: Apache-2.0 */
/* The kinds of files without a tree: hand-made dumps and restores whose only task is the test itself. */
#include <elf.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>

#include <cmocka.h>
#undef fail /* ours has arguments */

#include "directory.h"
#include "base/fd.h"
#include "image/page_chain.h"
#include "restore/progress.h"
#include "kinds/fd/build_id.h"
#include "kinds/fd/file_lock.h"
#include "kinds/fd/file_name.h"
#include "kinds/fd/memfd.h"
#include "kinds/fd/regular.h"
#include "kinds/mem/shmem.h"

enum { SPARSE_BYTES = 64 << 20 };

struct world {
	char directory[DIRECTORY_BYTES];
	int previous_directory;
	struct dump_options dump_options;
	struct restore_options restore_options;
	struct dump dump;
	struct dump_task dump_task, *dump_tasks[1];
	struct restore restore;
	struct restore_task restore_task, *restore_tasks[1];
};

static int set_up(void **state)
{
	struct world *world = xcalloc(1, sizeof(*world));

	directory_make(world->directory);
	world->previous_directory = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(chdir(world->directory), 0);
	world->dump_options.ghost_limit_bytes = 1 << 20;
	world->dump.options = &world->dump_options;
	world->restore.options = &world->restore_options;
	world->dump.images_dirfd = world->restore.images_dirfd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	world->dump_tasks[0] = &world->dump_task;
	world->dump.tasks = world->dump_tasks;
	world->dump.task_count = 1;
	world->dump_task.pid = getpid();
	world->dump_task.pidfd = -1;
	world->dump_task.proc_dirfd = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	world->restore_tasks[0] = &world->restore_task;
	world->restore.tasks = world->restore_tasks;
	world->restore.task_count = 1;
	world->restore_task.pid = getpid();
	*state = world;
	return 0;
}

static int tear_down(void **state)
{
	struct world *world = *state;

	close(world->dump.images_dirfd);
	close(world->dump_task.proc_dirfd);
	free(world->dump.files);
	free(world->restore.files);
	arena_free(&world->dump.arena);
	arena_free(&world->restore.arena);
	assert_int_equal(fchdir(world->previous_directory), 0);
	close(world->previous_directory);
	directory_remove(world->directory);
	free(world);
	return 0;
}

/* What restore/read.c makes of the files of the dump. */
static void hand_over(struct world *world)
{
	struct restore *restore = &world->restore;

	restore->file_count = world->dump.file_count;
	restore->files = xcalloc(restore->file_count, sizeof(*restore->files));
	for (size_t i = 0; i < restore->file_count; i++) {
		restore->files[i] = arena_alloc(&restore->arena, sizeof(**restore->files));
		restore->files[i]->id = world->dump.files[i]->id;
		restore->files[i]->entry = world->dump.files[i]->entry;
		restore->files[i]->kind = world->dump.files[i]->kind;
	}
}

static int make_file(const char *name, const char *content)
{
	int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, content, strlen(content)), strlen(content));
	return fd;
}

static struct target_fd target_of(struct world *world, int fd, const struct fd_kind *kind)
{
	struct target_fd target = {.task = &world->dump_task, .number = fd, .fd = fd};
	char path[48], *link = NULL;

	assert_int_equal(fstat(fd, &target.stat), 0);
	target.flags = fcntl(fd, F_GETFL);
	target.position = lseek(fd, 0, SEEK_CUR);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	assert_int_equal(read_link_at(AT_FDCWD, path, &link), 0);
	target.link = arena_strdup(&world->dump.arena, link);
	free(link);
	target.file = dump_file_add(&world->dump, kind);
	target.file->entry->type = kind->type;
	target.file->task = target.task;
	target.file->number = fd;
	target.file->stat = target.stat;
	target.fown = arena_message(&world->dump.arena, FownEntry, fown_entry);
	return target;
}

static int dump_fd(struct world *world, int fd, const struct fd_kind *kind)
{
	struct target_fd target = target_of(world, fd, kind);

	assert_true(kind->match(&target));
	return kind->dump(&world->dump, &target, target.file->entry);
}

static void assert_content(int fd, off_t offset, const char *content)
{
	char buffer[64] = "";

	assert_int_equal(pread(fd, buffer, strlen(content), offset), strlen(content));
	assert_string_equal(buffer, content);
}

static size_t count_names(const char *prefix)
{
	DIR *directory = opendir(".");
	size_t count = 0;

	for (struct dirent *entry; (entry = readdir(directory));)
		count += !strncmp(entry->d_name, prefix, strlen(prefix));
	closedir(directory);
	return count;
}

static void test_build_id(void **state)
{
	struct {
		Elf64_Ehdr header;
		Elf64_Phdr segment;
		Elf64_Nhdr note;
		char name[4];
		unsigned char id[20];
	} elf = {.header = {.e_phoff = sizeof(Elf64_Ehdr), .e_phnum = 1},
		 .segment = {.p_type = PT_NOTE,
			     .p_offset = sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr),
			     .p_filesz = sizeof(Elf64_Nhdr) + 24},
		 .note = {4, 20, NT_GNU_BUILD_ID},
		 .name = "GNU",
		 .id = {1, 2, 3, 4, [19] = 9}};
	uint32_t words[BUILD_ID_MAX_WORDS];
	_cleanup_fd_ int fd = make_file("elf", "");

	memcpy(elf.header.e_ident, ELFMAG, SELFMAG);
	elf.header.e_ident[EI_CLASS] = ELFCLASS64;
	assert_int_equal(pwrite(fd, &elf, sizeof(elf), 0), sizeof(elf));
	assert_int_equal(build_id_read(fd, words), 5);
	assert_int_equal(words[0], 0x04030201);
	assert_int_equal(words[4], 0x09000000);
	/* Lengths that lead out of the file. */
	elf.note.n_descsz = 0xfffffff0;
	assert_int_equal(pwrite(fd, &elf, sizeof(elf), 0), sizeof(elf));
	assert_int_equal(build_id_read(fd, words), 0);
	elf.note.n_descsz = 20;
	elf.note.n_namesz = 0xffffffff;
	assert_int_equal(pwrite(fd, &elf, sizeof(elf), 0), sizeof(elf));
	assert_int_equal(build_id_read(fd, words), 0);
	elf.header.e_phnum = 0xffff;
	assert_int_equal(pwrite(fd, &elf, sizeof(elf), 0), sizeof(elf));
	assert_int_equal(build_id_read(fd, words), 0);
	assert_int_equal(ftruncate(fd, 3), 0);
	assert_int_equal(build_id_read(fd, words), 0);
}

static void test_names(void **state)
{
	struct world *world = *state;
	enum file_name_state found;
	struct stat stat;
	char *name, path[128];
	_cleanup_fd_ int fd = make_file("odd (deleted)", "x");

	fstat(fd, &stat);
	snprintf(path, sizeof(path), "%s/odd (deleted)", world->directory);
	assert_int_equal(file_name_find(&world->dump, &world->dump_task, fd, O_RDWR, path, &stat, &found, &name), 0);
	assert_int_equal(found, FILE_NAME_GOOD);
	assert_string_equal(name, path);
	unlink("odd (deleted)");
	fstat(fd, &stat);
	strcat(path, " (deleted)");
	assert_int_equal(file_name_find(&world->dump, &world->dump_task, fd, O_RDWR, path, &stat, &found, &name), 0);
	assert_int_equal(found, FILE_NAME_GONE);
	assert_string_equal(strrchr(name, '/'), "/odd (deleted)");
	/* A path that leads elsewhere. */
	stat.st_nlink = 1;
	assert_int_equal(file_name_find(&world->dump, &world->dump_task, fd, O_RDWR, "/etc", &stat, &found, &name),
			 -ENOENT);
	assert_string_equal(world->dump.failure.code, "file-hidden");
}

static void test_proc_names(void **state)
{
	struct world *world = *state;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", getpid());
	assert_int_equal(file_name_check_proc(&world->dump, path), 0);
	assert_int_equal(file_name_check_proc(&world->dump, "/proc/meminfo"), 0);
	assert_int_equal(file_name_check_proc(&world->dump, "/proc/1/status"), -EXDEV);
	failure_clear(&world->dump.failure);
	assert_int_equal(file_name_check_proc(&world->dump, "/proc/99/stat (deleted)"), -ESRCH);
	failure_clear(&world->dump.failure);
	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", getpid(), getpid() + 1);
	assert_int_equal(file_name_check_proc(&world->dump, path), -EOPNOTSUPP);
}

static void test_deleted_file(void **state)
{
	struct world *world = *state;
	struct stat stat;
	int fd = make_file("ghost", "ghost contents"), sparse = make_file("sparse", "start");

	unlink("ghost");
	unlink("sparse");
	assert_int_equal(fchmod(fd, 04711), 0);
	assert_int_equal(ftruncate(sparse, SPARSE_BYTES), 0);
	assert_int_equal(pwrite(sparse, "end", 3, SPARSE_BYTES - 3), 3);
	assert_int_equal(dump_fd(world, fd, &regular_kind), 0);
	assert_int_equal(dump_fd(world, sparse, &regular_kind), 0);
	assert_int_equal(regular_kind.dump_finish(&world->dump), 0);
	regular_kind.dump_release(&world->dump, false);
	close(fd);
	close(sparse);

	hand_over(world);
	assert_int_equal(regular_kind.prepare(&world->restore), 0);
	assert_int_equal(regular_kind.open(&world->restore, world->restore.files[0], &fd), 0);
	assert_int_equal(regular_kind.open(&world->restore, world->restore.files[1], &sparse), 0);
	assert_int_equal(count_names("ghost") + count_names("sparse"), 2); /* the images */
	assert_content(fd, 0, "ghost contents");
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 14);
	assert_int_equal(fstat(fd, &stat), 0);
	assert_int_equal(stat.st_mode, S_IFREG | 04711);
	assert_int_equal(stat.st_nlink, 0);
	assert_content(sparse, SPARSE_BYTES - 3, "end");
	assert_int_equal(fstat(sparse, &stat), 0);
	assert_int_equal(stat.st_size, SPARSE_BYTES);
	assert_true(stat.st_blocks < 100);
	assert_int_equal(regular_kind.before_resume(&world->restore), 0);
	close(fd);
	close(sparse);
}

static void test_ghost_limit(void **state)
{
	struct world *world = *state;
	_cleanup_fd_ int fd = make_file("big", "x");

	unlink("big");
	world->dump_options.ghost_limit_bytes = 0;
	assert_int_equal(dump_fd(world, fd, &regular_kind), -EFBIG);
	assert_non_null(strstr(world->dump.failure.hint, "--ghost-limit"));
	regular_kind.dump_release(&world->dump, false);
}

static void test_link_remap(void **state)
{
	struct world *world = *state;
	int fd = make_file("first", "content");

	assert_int_equal(link("first", "second"), 0);
	unlink("first");
	assert_int_equal(dump_fd(world, fd, &regular_kind), -ENOENT);
	assert_non_null(strstr(world->dump.failure.hint, "--link-remap"));
	failure_clear(&world->dump.failure);
	world->dump.file_count = 0;
	world->dump_options.link_remap = true;
	assert_int_equal(dump_fd(world, fd, &regular_kind), 0);
	assert_int_equal(regular_kind.dump_finish(&world->dump), 0);
	assert_int_equal(count_names("link_remap."), 1);
	regular_kind.dump_release(&world->dump, true);
	assert_int_equal(count_names("link_remap."), 1);
	close(fd);

	hand_over(world);
	assert_int_equal(regular_kind.prepare(&world->restore), 0);
	assert_int_equal(regular_kind.open(&world->restore, world->restore.files[0], &fd), 0);
	assert_int_equal(regular_kind.before_resume(&world->restore), 0);
	assert_int_equal(count_names("link_remap.") + count_names("first"), 0);
	struct stat open_file, named;
	assert_int_equal(fstat(fd, &open_file) + stat("second", &named), 0);
	assert_int_equal(open_file.st_ino, named.st_ino);
	close(fd);
}

static void test_failed_dump_removes_link(void **state)
{
	struct world *world = *state;
	_cleanup_fd_ int fd = make_file("first", "content");

	assert_int_equal(link("first", "second"), 0);
	unlink("first");
	world->dump_options.link_remap = true;
	assert_int_equal(dump_fd(world, fd, &regular_kind), 0);
	fail(&world->dump.failure, EIO, "test", NULL, NULL, "later");
	regular_kind.dump_release(&world->dump, false);
	assert_int_equal(count_names("link_remap."), 0);
}

static void test_changed_files(void **state)
{
	struct world *world = *state;
	_cleanup_fd_ int fd = make_file("file", "0123456789");
	uint32_t mapped;
	char path[128];

	snprintf(path, sizeof(path), "%s/file", world->directory);
	assert_int_equal(regular_dump_fd(&world->dump, &world->dump_task, fd, path, O_RDONLY, &mapped), 0);
	assert_int_equal(dump_fd(world, fd, &regular_kind), 0);
	regular_kind.dump_release(&world->dump, false);
	hand_over(world);
	struct restore_fd *user = NULL;
	world->restore.files[1]->users = &user;
	world->restore.files[1]->user_count = 1;
	assert_int_equal(regular_kind.prepare(&world->restore), 0);
	/* A mapped file must be as it was, an open one may grow. */
	assert_int_equal(ftruncate(fd, 20), 0);
	assert_int_equal(regular_kind.prepare(&world->restore), -ESTALE);
	assert_string_equal(world->restore.failure.code, "file-size");
	failure_clear(&world->restore.failure);
	world->restore.files[0]->user_count = 1;
	assert_int_equal(regular_kind.prepare(&world->restore), 0);
	assert_int_equal(ftruncate(fd, 9), 0);
	assert_int_equal(regular_kind.prepare(&world->restore), -ESTALE);
	failure_clear(&world->restore.failure);
	unlink("file");
	assert_int_equal(regular_kind.prepare(&world->restore), -ENOENT);
	assert_string_equal(world->restore.failure.code, "file-missing");
}

static void test_mapped_files_share_an_entry(void **state)
{
	struct world *world = *state;
	_cleanup_fd_ int fd = make_file("library", "x");
	uint32_t first, second, writable;
	char path[128];

	snprintf(path, sizeof(path), "%s/library", world->directory);
	assert_int_equal(regular_dump_fd(&world->dump, &world->dump_task, fd, path, O_RDONLY, &first), 0);
	assert_int_equal(regular_dump_fd(&world->dump, &world->dump_task, fd, NULL, O_RDONLY, &second), 0);
	assert_int_equal(regular_dump_fd(&world->dump, &world->dump_task, fd, path, O_RDWR, &writable), 0);
	assert_int_equal(first, second);
	assert_int_not_equal(first, writable);
	regular_kind.dump_release(&world->dump, false);
}

static void test_memfd(void **state)
{
	struct world *world = *state;
	struct stat stat;
	uint32_t mapping;
	char link[64];
	int fd = memfd_create("name (deleted)", MFD_ALLOW_SEALING);

	assert_int_equal(ftruncate(fd, SPARSE_BYTES), 0);
	assert_int_equal(pwrite(fd, "far", 3, SPARSE_BYTES / 2 + 5), 3);
	char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 8192);
	assert_int_equal(*(volatile char *)page, 0); /* a page of zeros, not a hole any more */
	munmap(page, 4096);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW), 0);
	assert_int_equal(fstat(fd, &stat), 0);
	assert_int_equal(dump_fd(world, fd, &memfd_kind), 0);
	assert_int_equal(shmem_dump_mapping(&world->dump, &world->dump_task, fd, &stat,
					    "/memfd:name (deleted) (deleted)", &mapping),
			 0);
	assert_int_equal(mapping, 2);
	assert_int_equal(memfd_kind.dump_finish(&world->dump), 0);
	memfd_kind.dump_release(&world->dump, false);
	close(fd);

	hand_over(world);
	assert_int_equal(progress_create(&world->restore), 0);
	world->restore.page_chain = page_chain_new(world->restore.images_dirfd, &world->restore.failure);
	assert_int_equal(memfd_kind.prepare(&world->restore), 0);
	page_chain_free(TAKE_POINTER(world->restore.page_chain));
	progress_free(&world->restore);
	assert_int_equal(memfd_kind.open(&world->restore, world->restore.files[0], &fd), 0);
	int other;
	assert_int_equal(memfd_open_mapping(&world->restore, mapping, O_RDWR, &other), 0);
	assert_int_equal(memfd_kind.before_resume(&world->restore), 0);
	assert_content(fd, SPARSE_BYTES / 2 + 5, "far");
	assert_int_equal(fstat(fd, &stat), 0);
	assert_int_equal(stat.st_size, SPARSE_BYTES);
	assert_int_equal(stat.st_blocks, 8);
	assert_int_equal(fcntl(other, F_GET_SEALS), F_SEAL_WRITE | F_SEAL_GROW);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", other);
	char *target = NULL;
	assert_int_equal(read_link_at(AT_FDCWD, link, &target), 0);
	assert_string_equal(target, "/memfd:name (deleted) (deleted)");
	free(target);
	close(fd);
	close(other);
}

static void test_locks(void **state)
{
	struct world *world = *state;
	int fd = make_file("locked", "0123456789"), other = make_file("other", "x");
	struct flock range = {.l_type = F_RDLCK, .l_start = 2, .l_len = 5};
	struct dump_fd slots[3] = {};

	assert_int_equal(flock(fd, LOCK_EX), 0);
	assert_int_equal(fcntl(other, F_SETLK, &range), 0);
	assert_int_equal(dump_fd(world, fd, &regular_kind), 0);
	assert_int_equal(dump_fd(world, other, &regular_kind), 0);
	slots[0] = (struct dump_fd){fd, false, world->dump.files[0]};
	slots[1] = (struct dump_fd){other, false, world->dump.files[1]};
	slots[2] = (struct dump_fd){dup(other), false, world->dump.files[1]};
	world->dump_task.fds = slots;
	world->dump_task.fd_count = 3;
	assert_int_equal(file_locks_dump(&world->dump), 0);
	regular_kind.dump_release(&world->dump, false);

	struct restore_fd restored[2] = {{.number = fd}, {.number = other}};
	world->restore_task.fds = restored;
	world->restore_task.fd_count = 2;
	assert_int_equal(file_locks_prepare(&world->restore), 0);
	struct program *program = program_new((remote_t){0x10000}, 4096);
	assert_int_equal(file_lock_kind.plan_last(&world->restore, &world->restore_task, program), 0);
	assert_int_equal(program_step_count(program), 2);
	program_free(program);
	/* A descriptor that the images do not have. */
	world->restore_task.fd_count = 1;
	assert_int_equal(file_locks_prepare(&world->restore), -EPROTO);
	close(slots[2].number);
	close(other);
	close(fd);
}

#define WORLD_TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WORLD_TEST(test_build_id),
		WORLD_TEST(test_names),
		WORLD_TEST(test_proc_names),
		WORLD_TEST(test_deleted_file),
		WORLD_TEST(test_ghost_limit),
		WORLD_TEST(test_link_remap),
		WORLD_TEST(test_failed_dump_removes_link),
		WORLD_TEST(test_changed_files),
		WORLD_TEST(test_mapped_files_share_an_entry),
		WORLD_TEST(test_memfd),
		WORLD_TEST(test_locks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
