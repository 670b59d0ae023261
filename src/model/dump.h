/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The state of one dump: the frozen tree, its tasks, threads and open files, and the images that are being written.
 * Every function of a dump takes `struct dump *` first; there is no other state.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/arena.h"
#include "base/fail.h"
#include "image/image.h"
#include "model/options.h"

#include "core.pb-c.h"
#include "fdinfo.pb-c.h"
#include "fs.pb-c.h"
#include "mm.pb-c.h"
#include "stats.pb-c.h"

struct fd_kind;
struct injection; /* inject/injection.h: what criu has placed inside one task */
struct thread_status;
struct thread_facts;
struct process_facts;
struct proc_stat;
struct restart_blocks;      /* kernel/restart_blocks.h */
struct landlock_witnesses;  /* kinds/task/landlock.c */
struct semaphore_undo;      /* kinds/task/semaphore_undo.c */
struct seccomp_filters;     /* kinds/task/seccomp.c */
struct time_namespace_dump; /* kinds/ns/time_namespace.c */
struct memory_map;          /* kinds/mem: the mappings of one task */

/* task_core_entry.task_state */
enum task_state { TASK_STATE_ALIVE = 1, TASK_STATE_DEAD = 2, TASK_STATE_STOPPED = 3 };

struct dump_thread {
	pid_t tid;
	struct dump_task *task;
	bool seized;
	int stop_signal;                    /* of the group stop it was found in; 0 = it was running */
	CoreEntry *core;                    /* what the images will say; filled by the task kinds */
	const struct thread_status *status; /* kinds/task/thread_status.h; NULL = not read yet */
	struct thread_facts *facts;         /* kinds/task/thread_facts.h; NULL outside of collect_tree() */
};

/* One slot of a descriptor table. */
struct dump_fd {
	int number;
	bool close_on_exec;
	struct dump_file *file;
};

struct dump_task {
	size_t index;               /* in dump->tasks */
	pid_t pid, ppid, pgid, sid; /* as criu's own pid namespace sees them */
	struct dump_task *parent;   /* NULL for the root */
	char comm[32];
	enum task_state state;
	int exit_code;       /* wait status of a dead task */
	uint64_t start_time; /* clock ticks since boot */
	int pidfd;
	int proc_dirfd;              /* /proc/PID */
	struct dump_thread *threads; /* [0] is the leader; a dead task has none */
	size_t thread_count;
	struct dump_fd *fds; /* ascending numbers */
	size_t fd_count;
	uint32_t vm_id, files_id, fs_id, sighand_id; /* equal ids = shared between tasks */
	const struct proc_stat *stat;                /* kernel/proc.h; read when it stood */
	struct process_facts *facts;                 /* kinds/task/process_facts.h; NULL before collect_tree() */
	CoreEntry *core;                             /* the leader's, also of a dead task */
	FsEntry *fs;
	MmEntry *mm;
	struct memory_map *memory;
	struct injection *injection;
};

/* One open file description of the tree. */
struct dump_file {
	uint32_t id; /* its id in files.img */
	const struct fd_kind *kind;
	FileEntry *entry;       /* what will be written; parts live in dump->arena */
	struct dump_task *task; /* a task that has it … */
	int number;             /* … under this number; -1 = not in a descriptor table (mapped file, cwd) */
	struct stat stat;
	int flags;
	uint64_t position;
	int kept_fd;      /* our own descriptor, for files that no table holds; -1 = none */
	bool is_unlocked; /* its inode is known to have no locks */
};

struct dump {
	const struct dump_options *options;
	struct failure failure;
	struct arena arena;
	int images_dirfd;
	struct dump_task **tasks; /* parents before children; [0] is the root */
	size_t task_count, task_capacity;
	struct dump_file **files; /* files[i]->id == i + 1 */
	size_t file_count, file_capacity;
	struct known_files *mapped_files;           /* look-ups of mapped files (kinds/mem/file.c) */
	dev_t pipe_device;                          /* st_dev of every pipe(2) */
	struct file_index *file_index;              /* finds the open file description of a descriptor (dump/files.c) */
	struct option_defaults *option_defaults;    /* of fresh sockets (kinds/fd/option_table.c), in the arena */
	void **kind_states;                         /* one pointer per row of fd_kinds, owned by the kind */
	struct seccomp_filters *seccomp;            /* NULL = no task has one */
	struct landlock_witnesses *landlock;        /* only while threads are inspected */
	struct semaphore_undo *semaphore_undo;      /* the same */
	unsigned memory_nodes;                      /* of this machine: 0 = not asked yet, 1 = one, 2 = more */
	unsigned online_processors;                 /* of this machine; 0 = not asked yet */
	uint64_t default_slice_ns;                  /* of its scheduler; 0 = not asked yet, or it has none */
	uint64_t *own_namespaces;                   /* of criu (kinds/task/unsupported_state.c); NULL = not asked yet */
	struct time_namespace_dump *time_namespace; /* of the root; NULL = not looked at yet */
	DumpStatsEntry stats;
	uint64_t freezing_us;                      /* when the stop began (base/clock.h) */
	const struct xstate_layout *xstate_layout; /* of this CPU (kinds/task/registers.c) */
	struct vm_flags_reader *vm_flags;          /* NULL = mappings are read from smaps */
	struct file_objects_reader *file_objects;  /* NULL = each file is asked for locks and owner */
	struct task_objects_reader *task_objects;  /* NULL = what tasks share is asked with kcmp */
	struct restart_blocks *restart_blocks;     /* NULL = no thread has needed them yet */
	char run_id[37];                           /* inventory_entry.dump_criu_run_id */
	uint32_t last_pages_id;                    /* of the last pages-<id>.img */
	uint32_t next_object_id; /* for ids that only the images know (ghost files, memfd inodes …) */
	bool files_released;     /* the kinds have undone what they changed outside */
	bool network_locked;     /* some connection is locked: thaw and failure must unlock */
	bool only_explain;       /* nothing is written; blockers are reported through options->blocker */
	size_t blocker_count;    /* that were reported */
};

/* "task 41 (redis-server)" for failures. Returns a string in the arena. */
const char *dump_task_name(struct dump *dump, const struct dump_task *task);
/* "task 41 (redis-server): fd 7" */
const char *dump_fd_name(struct dump *dump, const struct dump_task *task, int number);

/* A new descriptor of ours for the open file (pidfd_getfd). Returns 0 or a failure. */
int dump_file_get(struct dump *dump, const struct dump_file *file, int *ret_fd);
/* The open file behind descriptor @number of @task, or NULL. */
struct dump_file *dump_find_fd(const struct dump *dump, const struct dump_task *task, int number);
/* The task with this pid, or NULL when it is outside the tree. */
struct dump_task *dump_find_task(const struct dump *dump, pid_t pid);
/*
 * Adds an open file that is in no descriptor table of the tree (a mapped file, a working directory, a descriptor in
 * flight in a socket queue): gives it an id and a zeroed FileEntry. The caller fills the entry.
 */
struct dump_file *dump_file_add(struct dump *dump, const struct fd_kind *kind);
/*
 * Runs the kinds' table on a descriptor of ours that stands for an open file of the tree (fetched by SCM_RIGHTS
 * or pidfd_getfd) and returns its file, the same one if the tree has it already. @task, @number: whom to blame and,
 * if number >= 0, where it was found. Returns 0 or a failure.
 */
int dump_file_identify(struct dump *dump, struct dump_task *task, int number, int fd, struct dump_file **ret_file);

/*
 * A blocker: an object that cannot be dumped. In a dump it is the failure, in `criu explain` it is reported and 0 is
 * returned, so that the next object is looked at. Use: `return dump_blocked(dump);` after fail().
 */
int dump_blocked(struct dump *dump);
