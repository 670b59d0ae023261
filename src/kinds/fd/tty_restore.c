/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Terminals, restore.
 *
 * A pty is made by one process, with all open files of both ends, which it offers to the tasks that own them. If a
 * session has it as its terminal, that is the session's leader, before it has children: they inherit the terminal at
 * fork and in no other way. Else it is the owner of the file with the lowest id.
 *
 * The number of a pty is part of what programs remember (/dev/pts/3), and the kernel gives the lowest free one: ptys
 * are made until the wanted number comes, and the others are given back.
 *
 * A terminal whose master is not in the images is that of criu (a shell job) or was hung up. Settings and foreground
 * group of criu's own terminal are changed at the very end, so that a restore that fails leaves the shell as it was.
 */
#include "kinds/fd/tty_restore.h"

#include <asm/termbits.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fdinfo.h"
#include "kinds/fd/regular.h"
#include "kinds/fd/tty_settings.h"

#define OPEN_FLAGS (O_ACCMODE | O_NONBLOCK | O_APPEND | O_LARGEFILE)
#define PTY_LIMIT (1 << 20)

extern const struct fd_kind tty_kind;

struct restored_pty {
	uint32_t index;
	const TtyInfoEntry *master, *slave;
	struct restore_file *master_file;
	struct restore_file **slave_files;
	size_t slave_file_count, slave_file_capacity;
	struct restore_task *leader; /* of the session whose terminal it is, if it is in the images */
	struct restore_file *maker;  /* who makes it, without a leader */
	bool external;               /* criu's own terminal takes its place */
	struct tty_queues queues;
};

struct tty_restore {
	TtyInfoEntry **infos;
	size_t info_count, info_capacity;
	struct restored_pty *ptys;
	size_t pty_count, pty_capacity;
	char terminal[64]; /* "/proc/PID/fd/N" of criu's own terminal; empty = it has none */
};

static struct tty_restore *tty_state(struct restore *restore)
{
	struct tty_restore **state = (struct tty_restore **)restore_kind_state(restore, &tty_kind);

	if (!*state)
		*state = arena_alloc(&restore->arena, sizeof(**state));
	return *state;
}

/* ---- reading and planning, in criu ---- */

static const TtyInfoEntry *find_info(const struct tty_restore *state, uint32_t id)
{
	for (size_t i = 0; i < state->info_count; i++)
		if (state->infos[i]->id == id)
			return state->infos[i];
	return NULL;
}

static struct restored_pty *find_pty(const struct tty_restore *state, uint32_t index)
{
	for (size_t i = 0; i < state->pty_count; i++)
		if (state->ptys[i].index == index)
			return &state->ptys[i];
	return NULL;
}

static bool is_master(const TtyInfoEntry *info)
{
	return info->rdev == (TTY_AUX_MAJOR << 8 | PTMX_MINOR);
}

/* A slave whose master was closed: any pty can be made one. */
static bool is_hung_up(const TtyInfoEntry *info)
{
	return info->type == TTY_TYPE__PTY && !is_master(info) && !info->termios;
}

static int add_pty(struct restore *restore, struct tty_restore *state, const TtyInfoEntry *info)
{
	struct restored_pty *pty = info->pty ? find_pty(state, info->pty->index) : NULL;

	if (!info->pty || info->pty->index >= PTY_LIMIT)
		return fail(&restore->failure, EINVAL, "image-tty", NULL, NULL,
			    "tty-info.img: terminal %u has no valid number", info->id);
	if (!pty) {
		ARRAY_GROW(state->ptys, state->pty_count, state->pty_capacity);
		pty = &state->ptys[state->pty_count++];
		*pty = (struct restored_pty){.index = info->pty->index};
	}
	if (is_master(info) ? pty->master != NULL : pty->slave != NULL)
		return fail(&restore->failure, EINVAL, "image-tty", NULL, NULL,
			    "tty-info.img: the same end of /dev/pts/%u twice", pty->index);
	if (is_master(info))
		pty->master = info;
	else
		pty->slave = info;
	return 0;
}

static int read_infos(struct restore *restore, struct tty_restore *state)
{
	ProtobufCMessage *message;
	struct image *image;
	int ret = restore_image_open(restore, IMAGE_TTY_INFO, 0, &image);

	if (ret < 0)
		return ret == -ENOENT && !failure_is_set(&restore->failure) ? 0 : ret;
	while ((ret = image_read(image, &message)) > 0) {
		ARRAY_GROW(state->infos, state->info_count, state->info_capacity);
		state->infos[state->info_count++] = (TtyInfoEntry *)message;
	}
	image_close(&image);
	for (size_t i = 0; i < state->info_count && !ret; i++)
		if (state->infos[i]->type == TTY_TYPE__PTY && !is_hung_up(state->infos[i]))
			ret = add_pty(restore, state, state->infos[i]);
	return ret;
}

static void keep_data(const struct tty_restore *state, const TtyDataEntry *entry)
{
	const TtyInfoEntry *info = find_info(state, entry->tty_id);
	struct restored_pty *pty = info && info->pty ? find_pty(state, info->pty->index) : NULL;

	if (!pty || !entry->data.len)
		return;
	char **bytes = is_master(info) ? &pty->queues.written : &pty->queues.typed;
	free(*bytes);
	*bytes = xmemdup(entry->data.data, entry->data.len);
	*(is_master(info) ? &pty->queues.written_bytes : &pty->queues.typed_bytes) = entry->data.len;
}

static int read_data(struct restore *restore, const struct tty_restore *state)
{
	ProtobufCMessage *message;
	struct image *image;
	int ret = restore_image_open(restore, IMAGE_TTY_DATA, 0, &image);

	if (ret < 0)
		return ret == -ENOENT && !failure_is_set(&restore->failure) ? 0 : ret;
	while ((ret = image_read(image, &message)) > 0) {
		keep_data(state, (const TtyDataEntry *)message);
		image_message_free(message);
	}
	image_close(&image);
	return ret;
}

static int add_file(struct restore *restore, struct tty_restore *state, struct restore_file *file)
{
	const TtyFileEntry *entry = file->entry->tty;
	const TtyInfoEntry *info = entry ? find_info(state, entry->tty_info_id) : NULL;
	struct restored_pty *pty;

	if (!info || !entry->has_regf_id || !regular_name(restore, entry->regf_id))
		return fail(&restore->failure, EINVAL, "image-tty", NULL, NULL,
			    "files.img: file %u is a terminal that tty-info.img does not know, or has no path",
			    file->id);
	file->kind_data = (void *)info;
	if (info->type != TTY_TYPE__PTY || is_hung_up(info))
		return 0;
	pty = find_pty(state, info->pty->index);
	if (is_master(info) && pty->master_file)
		return fail(&restore->failure, EINVAL, "image-tty", NULL, NULL, "files.img: two masters of /dev/pts/%u",
			    pty->index);
	if (!pty->maker || (!pty->maker->user_count && file->user_count))
		pty->maker = file;
	if (is_master(info)) {
		pty->master_file = file;
		return 0;
	}
	ARRAY_GROW(pty->slave_files, pty->slave_file_count, pty->slave_file_capacity);
	pty->slave_files[pty->slave_file_count++] = file;
	return 0;
}

static int plan_pty(struct restore *restore, struct tty_restore *state, struct restored_pty *pty)
{
	struct restore_task *task = pty->slave && pty->slave->sid ? restore_find_task(restore, pty->slave->sid) : NULL;

	if (!pty->maker)
		return 0;
	if (pty->master_file && task && task->sid == task->pid && task->state != TASK_STATE_DEAD)
		pty->leader = task;
	pty->external = !pty->master_file;
	if (!pty->external)
		return 0;
	if (!restore->options->shell_job)
		return fail(&restore->failure, EINVAL, "tty-external", NULL,
			    "use --shell-job to give it the terminal that criu runs in",
			    "the terminal /dev/pts/%u was not part of the tree", pty->index);
	if (!*state->terminal)
		return fail(&restore->failure, ENOTTY, "tty-external", NULL,
			    "run criu restore --shell-job in a terminal",
			    "the tree needs a terminal in place of /dev/pts/%u and criu has none", pty->index);
	return 0;
}

/* By a path that leads there from the tasks: descriptors 0 to 2 are theirs soon. */
static void find_own_terminal(struct tty_restore *state)
{
	struct termios settings;

	for (int fd = 0; fd <= 2; fd++)
		if (!ioctl(fd, TCGETS, &settings)) {
			snprintf(state->terminal, sizeof(state->terminal), "/proc/%d/fd/%d", getpid(), fd);
			return;
		}
	int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fd >= 0)
		snprintf(state->terminal, sizeof(state->terminal), "/dev/tty");
	close_fd_pointer(&fd);
}

int tty_prepare(struct restore *restore)
{
	struct tty_restore *state = tty_state(restore);
	int ret = read_infos(restore, state);

	if (restore->options->shell_job)
		find_own_terminal(state);
	if (!ret)
		ret = read_data(restore, state);
	for (size_t i = 0; i < restore->file_count && !ret; i++)
		if (restore->files[i]->kind == &tty_kind)
			ret = add_file(restore, state, restore->files[i]);
	for (size_t i = 0; i < state->pty_count && !ret; i++)
		ret = plan_pty(restore, state, &state->ptys[i]);
	return ret;
}

/* ---- making a pty ---- */

static int open_multiplexer(struct restore *restore, const struct restored_pty *pty, int *ret_fd)
{
	const TtyFileEntry *entry = pty->master_file->entry->tty;

	return regular_open(restore, entry->regf_id, O_RDWR | O_NOCTTY | O_CLOEXEC | (entry->flags & OPEN_FLAGS),
			    ret_fd);
}

/* The next pty that the kernel gives, which is the lowest free number. */
static int next_master(struct restore *restore, const struct restored_pty *pty, int *ret_fd)
{
	_cleanup_fd_ int fd = -1;
	unsigned int index;
	int ret = open_multiplexer(restore, pty, &fd);

	if (ret < 0)
		return ret;
	if (ioctl(fd, TIOCGPTN, &index) < 0)
		return fail_errno(&restore->failure, errno, "tty-open", NULL, NULL, "cannot ask a terminal's number");
	if (index > pty->index)
		return fail(&restore->failure, EEXIST, "tty-taken", NULL,
			    "end the program that uses it, or restore with a new devpts mounted",
			    "the terminal /dev/pts/%u is in use by another program", pty->index);
	*ret_fd = TAKE_FD(fd);
	return index == pty->index;
}

/* Makes the pty with the right number. Nobody else of the tree may make one meanwhile. */
static int make_master(struct restore *restore, const struct restored_pty *pty, int *ret_master)
{
	_cleanup_free_ int *spare = NULL;
	size_t count = 0, capacity = 0;
	int ret, fd = -1;

	restore_lock(restore);
	while ((ret = next_master(restore, pty, &fd)) == 0) {
		ARRAY_GROW(spare, count, capacity);
		spare[count++] = fd;
	}
	while (count)
		close(spare[--count]);
	restore_unlock(restore);
	if (ret < 0)
		return ret;
	*ret_master = fd;
	return 0;
}

static int open_slave(struct restore *restore, const struct restored_pty *pty, int master, uint32_t flags, int *ret_fd)
{
	/* What is asked for here stays in the file's flags, also O_CLOEXEC. */
	int fd = ioctl(master, TIOCGPTPEER, (flags & (OPEN_FLAGS | O_CLOEXEC)) | O_NOCTTY);

	if (fd < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return fail_errno(&restore->failure, errno, "tty-open", NULL, NULL, "cannot open /dev/pts/%u",
				  pty->index);
	*ret_fd = fd;
	return 0;
}

/* Owner and mode of the slave are those of its file, which mesg(1) and login programs change. */
static int give_slave(struct restore *restore, const struct restored_pty *pty, int slave)
{
	const struct restore_file *file = NULL;

	if (pty->slave_file_count)
		file = restore_find_file(restore, pty->slave_files[0]->entry->tty->regf_id);
	if (pty->slave->has_uid && pty->slave->has_gid && fchown(slave, pty->slave->uid, pty->slave->gid) < 0)
		return fail_errno(&restore->failure, errno, "tty-open", NULL, NULL,
				  "cannot give /dev/pts/%u to user %u, group %u", pty->index, pty->slave->uid,
				  pty->slave->gid);
	if (file && file->entry->reg->has_mode && fchmod(slave, file->entry->reg->mode & 07777) < 0)
		return fail_errno(&restore->failure, errno, "tty-open", NULL, NULL,
				  "cannot set the mode of /dev/pts/%u", pty->index);
	return 0;
}

static int set_up(struct restore *restore, const struct restored_pty *pty, int master)
{
	const TtyInfoEntry *info = pty->slave ? pty->slave : pty->master;
	int unlocked = 0, ret = ioctl(master, TIOCSPTLCK, &unlocked) < 0 ? -errno : tty_settings_apply(master, info);

	if (ret < 0)
		return fail_errno(&restore->failure, ret, "tty-settings", NULL, NULL,
				  "cannot set the terminal /dev/pts/%u up", pty->index);
	return 0;
}

static int become_controlling(struct restore *restore, const TtyInfoEntry *info, int fd)
{
	if (ioctl(fd, TIOCSCTTY, 0) < 0)
		return fail_errno(&restore->failure, errno, "tty-session", NULL, NULL,
				  "cannot make terminal %u the one of the session", info->id);
	return 0;
}

/* Opens one file of the pty for whoever owns it. */
static int make_file(struct restore *restore, const struct restored_pty *pty, struct restore_file *file, int master,
		     int *ret_fd)
{
	uint32_t flags = file->entry->tty->flags;
	_cleanup_fd_ int fd = -1;
	int ret = 0;

	if (file == pty->master_file)
		fd = fcntl(master, F_DUPFD_CLOEXEC, 0);
	else
		ret = open_slave(restore, pty, master, flags, &fd);
	if (!ret && fd < 0)
		ret = fail_errno(&restore->failure, errno, "tty-open", NULL, NULL, "cannot copy a descriptor");
	if (!ret)
		ret = status_flags_restore(restore, fd, flags);
	if (!ret)
		*ret_fd = TAKE_FD(fd);
	return ret;
}

/* @self: the file that the caller opens, put into *ret_fd; all others are offered. NULL: all are offered. */
static int make_files(struct restore *restore, const struct restored_pty *pty, int master,
		      const struct restore_file *self, int *ret_fd)
{
	int ret = 0;

	for (size_t i = 0; i <= pty->slave_file_count && !ret; i++) {
		struct restore_file *file = i ? pty->slave_files[i - 1] : pty->master_file;
		int fd = -1;
		if (!file)
			continue;
		ret = make_file(restore, pty, file, master, &fd);
		if (!ret && file == self)
			*ret_fd = fd;
		else if (!ret)
			ret = restore_offer(restore, file->id, fd);
	}
	return ret;
}

static int make_pty(struct restore *restore, const struct restored_pty *pty, const struct restore_file *self,
		    int *ret_fd)
{
	_cleanup_fd_ int master = -1, slave = -1;
	int ret = make_master(restore, pty, &master);

	if (!ret)
		ret = set_up(restore, pty, master);
	/* A slave that nobody ever opened stays so: its master would see a hangup. */
	if (!ret && pty->slave)
		ret = open_slave(restore, pty, master, O_RDWR, &slave);
	if (!ret && pty->slave)
		ret = give_slave(restore, pty, slave);
	if (!ret && pty->leader)
		ret = become_controlling(restore, pty->slave, slave);
	return ret ? ret : make_files(restore, pty, master, self, ret_fd);
}

/* ---- operations ---- */

/* A console or serial line that is the terminal of this session. */
static int take_device(struct restore *restore, const TtyInfoEntry *info)
{
	for (size_t i = 0; i < restore->file_count; i++) {
		const struct restore_file *file = restore->files[i];
		if (file->kind != &tty_kind || file->kind_data != info)
			continue;
		_cleanup_fd_ int fd = -1;
		int ret = regular_open(restore, file->entry->tty->regf_id, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC,
				       &fd);
		return ret ? ret : become_controlling(restore, info, fd);
	}
	return 0;
}

int tty_session_started(struct restore *restore)
{
	struct tty_restore *state = tty_state(restore);
	int ret = 0;

	for (size_t i = 0; i < state->pty_count && !ret; i++)
		if (state->ptys[i].leader == restore->self)
			ret = make_pty(restore, &state->ptys[i], NULL, NULL);
	for (size_t i = 0; i < state->info_count && !ret; i++) {
		const TtyInfoEntry *info = state->infos[i];
		if (info->type != TTY_TYPE__PTY && info->type != TTY_TYPE__CTTY &&
		    info->sid == (uint32_t)restore->self->pid)
			ret = take_device(restore, info);
	}
	return ret;
}

static int open_external(struct restore *restore, uint32_t flags, int *ret_fd)
{
	const char *path = tty_state(restore)->terminal;
	int fd = open(path, (flags & OPEN_FLAGS) | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return fail_errno(&restore->failure, errno, "tty-external", path, NULL,
				  "cannot open the terminal that criu runs in");
	*ret_fd = fd;
	return 0;
}

static int open_hung_up(struct restore *restore, uint32_t flags, int *ret_fd)
{
	_cleanup_fd_ int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	int unlocked = 0, slave = -1;

	if (master >= 0 && !ioctl(master, TIOCSPTLCK, &unlocked))
		slave = ioctl(master, TIOCGPTPEER, (flags & OPEN_FLAGS) | O_NOCTTY);
	if (slave < 0)
		return fail_errno(&restore->failure, errno, "tty-open", "/dev/ptmx", NULL,
				  "cannot make a terminal that is hung up");
	*ret_fd = slave;
	return 0;
}

static int open_pty(struct restore *restore, struct restore_file *file, const struct restored_pty *pty, int *ret_fd)
{
	if (pty->external)
		return open_external(restore, file->entry->tty->flags, ret_fd);
	if (!pty->leader && pty->maker == file)
		return make_pty(restore, pty, file, ret_fd);
	return restore_take_offer(restore, file->id, ret_fd);
}

int tty_open(struct restore *restore, struct restore_file *file, int *ret_fd)
{
	const TtyInfoEntry *info = file->kind_data;
	uint32_t flags = file->entry->tty->flags;
	int ret;

	if (is_hung_up(info))
		return open_hung_up(restore, flags, ret_fd);
	if (info->type == TTY_TYPE__PTY)
		return open_pty(restore, file, find_pty(tty_state(restore), info->pty->index), ret_fd);
	ret = regular_open(restore, file->entry->tty->regf_id, (flags & OPEN_FLAGS) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
			   ret_fd);
	return ret ? ret : status_flags_restore(restore, *ret_fd, flags);
}

/* The foreground group. One that has died since is not in the images either. */
static void set_foreground(const TtyInfoEntry *info, int fd)
{
	pid_t foreground = info->pgrp;
	sigset_t set, before;

	if (!foreground)
		return;
	/* From a background group it is answered with SIGTTOU, unless that is blocked. */
	sigemptyset(&set);
	sigaddset(&set, SIGTTOU);
	sigprocmask(SIG_BLOCK, &set, &before);
	if (ioctl(fd, TIOCSPGRP, &foreground) < 0)
		log_warn("terminal %u: cannot make group %d the foreground: %m", info->id, foreground);
	sigprocmask(SIG_SETMASK, &before, NULL);
}

/* The leader of a session is the one process of which it is certain that it may choose the foreground group. */
int tty_finish_task(struct restore *restore)
{
	const struct tty_restore *state = tty_state(restore);
	const struct restore_task *self = restore->self;

	for (size_t i = 0; i < state->info_count && self->sid == self->pid; i++) {
		const TtyInfoEntry *info = state->infos[i];
		if (info->sid != (uint32_t)self->pid || info->type == TTY_TYPE__CTTY)
			continue;
		_cleanup_fd_ int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
		if (fd >= 0)
			set_foreground(info, fd);
		else
			log_warn("terminal %u: session %d did not get it back: %m", info->id, self->pid);
	}
	return 0;
}

static int finish_master(struct restore *restore, const struct restored_pty *pty, int master)
{
	_cleanup_fd_ int slave = -1;
	const int on = 1;
	int ret = 0;

	if (pty->queues.typed_bytes || pty->queues.written_bytes) {
		ret = open_slave(restore, pty, master, O_RDWR | O_NONBLOCK, &slave);
		if (ret < 0)
			return ret;
		ret = tty_queues_fill(master, slave, &pty->queues);
	}
	if (!ret && ((pty->master->packet_mode && ioctl(master, TIOCPKT, &on) < 0) ||
		     (pty->master->exclusive && ioctl(master, TIOCEXCL) < 0) ||
		     (pty->master->locked && ioctl(master, TIOCSPTLCK, &on) < 0)))
		ret = -errno;
	if (ret < 0)
		return fail_errno(&restore->failure, ret, "tty-settings", NULL, NULL,
				  "cannot complete the terminal /dev/pts/%u", pty->index);
	return 0;
}

int tty_finish(struct restore *restore, struct restore_file *file, int fd)
{
	const TtyInfoEntry *info = file->kind_data;
	const struct restored_pty *pty = info->type == TTY_TYPE__PTY && !is_hung_up(info)
						 ? find_pty(tty_state(restore), info->pty->index)
						 : NULL;

	if (!pty || pty->external)
		return 0;
	if (file == pty->master_file)
		return finish_master(restore, pty, fd);
	if (info->exclusive && ioctl(fd, TIOCEXCL) < 0)
		return fail_errno(&restore->failure, errno, "tty-settings", NULL, NULL,
				  "cannot make /dev/pts/%u exclusive", pty->index);
	return 0;
}

/* Now the job takes the shell's terminal over, if it had it. */
static int take_over(struct restore *restore, const struct restored_pty *pty)
{
	_cleanup_fd_ int fd = -1;
	sigset_t set, before;
	int ret = open_external(restore, O_RDWR, &fd);

	if (ret < 0)
		return ret;
	sigemptyset(&set);
	sigaddset(&set, SIGTTOU);
	sigprocmask(SIG_BLOCK, &set, &before);
	TtyInfoEntry settings = *pty->slave;
	settings.winsize = NULL;
	ret = tty_settings_apply(fd, &settings);
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (ret < 0)
		return fail_errno(&restore->failure, ret, "tty-external", NULL, NULL,
				  "cannot set the terminal that criu runs in");
	set_foreground(pty->slave, fd);
	return 0;
}

int tty_before_resume(struct restore *restore)
{
	struct tty_restore *state = tty_state(restore);
	int ret = 0;

	for (size_t i = 0; i < state->pty_count && !ret; i++)
		if (state->ptys[i].maker && state->ptys[i].external)
			ret = take_over(restore, &state->ptys[i]);
	return ret;
}
