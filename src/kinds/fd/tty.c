/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Terminals, dump: ptys, the controlling terminal under its name /dev/tty, consoles.
 *
 * In the images a terminal is three things: the open file (which also refers to a regular file that has its path),
 * the terminal itself in tty-info.img (one for each end of a pty: settings, session, foreground group), and the bytes
 * in its queues in tty-data.img. A pty's ends have the ids 2 * index (slave) and 2 * index + 1 (master).
 *
 * A pty lives as long as its master. A slave whose master is outside the tree belongs to a terminal emulator, an ssh
 * server, a container manager: it can only be replaced by another terminal on restore, which must be asked for
 * (--shell-job), and only if its session is outside too, because a session has one terminal and keeps it.
 *
 * Which terminal a session has, only /proc/PID/stat tells for slaves whose session criu is not in.
 */
#include <asm/termbits.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include "base/fd.h"
#include "base/log.h"
#include "kinds/fd/fd_kind.h"
#include "kinds/fd/regular.h"
#include "kinds/fd/tty_restore.h"
#include "kinds/fd/tty_settings.h"

extern const struct fd_kind tty_kind;

/* One terminal (one end of a pty) of the tree. */
struct dumped_tty {
	TtyInfoEntry *info;
	struct dump_file *file; /* NULL: nobody has it open, but a session has it or it was closed */
	dev_t real_device;      /* of the slave that it acts on */
	struct tty_queues queues;
};

/* A session and its terminal. */
struct tty_session {
	pid_t sid, foreground;
	dev_t device;
	bool leader_in_tree;
};

struct tty_dump {
	struct dumped_tty *terminals;
	size_t count, capacity;
	struct tty_session *sessions;
	size_t session_count, session_capacity;
};

static bool is_pty_slave(dev_t device)
{
	return major(device) == PTY_SLAVE_MAJOR;
}

static bool tty_match(const struct target_fd *target)
{
	struct termios settings;
	unsigned int real;

	if (!S_ISCHR(target->stat.st_mode) || (target->flags & O_PATH))
		return false;
	if (is_pty_slave(target->stat.st_rdev) || major(target->stat.st_rdev) == TTY_AUX_MAJOR)
		return true;
	return !ioctl(target->fd, TCGETS, &settings) && !ioctl(target->fd, TIOCGDEV, &real);
}

static struct tty_dump *tty_dump_state(struct dump *dump)
{
	struct tty_dump **state = (struct tty_dump **)dump_kind_state(dump, &tty_kind);

	if (!*state)
		*state = arena_alloc(&dump->arena, sizeof(**state));
	return *state;
}

static struct dumped_tty *find_tty(const struct tty_dump *state, uint32_t id)
{
	for (size_t i = 0; i < state->count; i++)
		if (state->terminals[i].info->id == id)
			return &state->terminals[i];
	return NULL;
}

static struct dumped_tty *add_tty(struct dump *dump, struct tty_dump *state, uint32_t id, TtyType type)
{
	struct dumped_tty *tty;

	ARRAY_GROW(state->terminals, state->count, state->capacity);
	tty = &state->terminals[state->count++];
	memset(tty, 0, sizeof(*tty));
	tty->info = arena_message(&dump->arena, TtyInfoEntry, tty_info_entry);
	tty->info->id = id;
	tty->info->type = type;
	return tty;
}

static void set_pty(struct dump *dump, TtyInfoEntry *info, uint32_t index)
{
	info->pty = arena_message(&dump->arena, TtyPtyEntry, tty_pty_entry);
	info->pty->index = index;
}

/* Which terminal a descriptor is. Returns 0 or -errno. */
static int identify(const struct target_fd *target, TtyType *ret_type, uint32_t *ret_id, int *ret_index)
{
	dev_t device = target->stat.st_rdev;
	unsigned int real = 0;
	int index = -1;

	if (device == makedev(TTY_AUX_MAJOR, PTMX_MINOR)) {
		if (ioctl(target->fd, TIOCGPTN, &index) < 0)
			return -errno;
		*ret_id = 2 * index + 1;
	} else if (is_pty_slave(device)) {
		struct termios settings;
		index = minor(device);
		*ret_id = 2 * index;
		/* Its master is gone, and its number may be another pty's by now. */
		if (ioctl(target->fd, TCGETS, &settings) < 0 && errno == EIO)
			*ret_id = TTY_ID_HUNG_UP | target->file->id << 1;
	} else if (device == makedev(TTY_AUX_MAJOR, 0)) {
		if (ioctl(target->fd, TIOCGDEV, &real) < 0)
			return -errno;
		*ret_type = TTY_TYPE__CTTY;
		*ret_id = TTY_ID_CONTROLLING | real;
		return 0;
	} else {
		*ret_type = device == makedev(TTY_AUX_MAJOR, 1)        ? TTY_TYPE__CONSOLE
			    : major(device) == 4 && minor(device) < 64 ? TTY_TYPE__VT
								       : TTY_TYPE__SERIAL;
		*ret_id = TTY_ID_DEVICE | (uint32_t)device;
		return 0;
	}
	*ret_type = TTY_TYPE__PTY;
	*ret_index = index;
	return 0;
}

static dev_t real_device(const struct target_fd *target)
{
	unsigned int real;

	/* A hung up one acts on nothing. */
	return ioctl(target->fd, TIOCGDEV, &real) < 0 ? 0 : real;
}

static int describe(struct dump *dump, const struct target_fd *target, struct dumped_tty *tty, int index)
{
	TtyInfoEntry *info = tty->info;
	int value, ret;

	tty->file = target->file;
	tty->real_device = real_device(target);
	info->rdev = target->stat.st_rdev;
	info->has_dev = info->has_uid = info->has_gid = true;
	info->dev = target->stat.st_dev;
	info->uid = target->stat.st_uid;
	info->gid = target->stat.st_gid;
	if (index >= 0)
		set_pty(dump, info, index);
	ret = tty_settings_read(&dump->arena, target->fd, info);
	if (ret < 0)
		return fail_errno(&dump->failure, ret, "tty-read", NULL, NULL, "cannot read the terminal's settings");
	if (!ioctl(target->fd, TIOCGEXCL, &value))
		info->exclusive = value;
	if (!ioctl(target->fd, TIOCGPTLCK, &value))
		info->locked = value;
	if (!ioctl(target->fd, TIOCGPKT, &value))
		info->packet_mode = value;
	return 0;
}

/*
 * The path of a slave. It exists only as long as the pty, so there is nothing to keep or to check, and the path of a
 * slave whose master is gone must not be taken for a deleted device node.
 */
static uint32_t add_slave_path(struct dump *dump, const struct target_fd *target)
{
	struct dump_file *file = dump_file_add(dump, &regular_kind);
	RegFileEntry *reg = arena_message(&dump->arena, RegFileEntry, reg_file_entry);
	char *deleted;

	file->task = target->task;
	file->stat = target->stat;
	file->flags = target->flags;
	file->entry->type = FD_TYPES__REG;
	file->entry->reg = reg;
	reg->id = file->id;
	reg->flags = target->flags;
	reg->fown = arena_message(&dump->arena, FownEntry, fown_entry);
	reg->name = arena_strdup(&dump->arena, target->link);
	deleted = strstr(reg->name, " (deleted)");
	if (deleted)
		*deleted = '\0';
	reg->has_mode = true;
	reg->mode = target->stat.st_mode;
	return file->id;
}

static int tty_dump(struct dump *dump, const struct target_fd *target, FileEntry *entry)
{
	struct tty_dump *state = tty_dump_state(dump);
	struct dumped_tty *tty;
	int index = -1, ret;
	uint32_t id = 0, regular_id = 0;
	TtyType type = TTY_TYPE__UNKNOWN;

	ret = identify(target, &type, &id, &index);
	if (ret < 0)
		return fail_errno(&dump->failure, ret, "tty-read", NULL, NULL, "cannot ask which terminal it is");
	tty = find_tty(state, id);
	if (tty && tty->file && index >= 0 && !(id & 1) && tty->info->dev != target->stat.st_dev)
		return fail(&dump->failure, EOPNOTSUPP, "fd-tty-instances", NULL, NULL,
			    "the tree has two terminals /dev/pts/%d, of different devpts file systems", index);
	if (!tty) {
		tty = add_tty(dump, state, id, type);
		ret = describe(dump, target, tty, index);
	}
	if (!ret && is_pty_slave(target->stat.st_rdev))
		regular_id = add_slave_path(dump, target);
	else if (!ret)
		ret = regular_dump_fd(dump, target->task, target->fd, target->link, target->flags, &regular_id);
	if (ret < 0)
		return ret;
	entry->tty = arena_message(&dump->arena, TtyFileEntry, tty_file_entry);
	entry->tty->id = entry->id;
	entry->tty->tty_info_id = id;
	entry->tty->flags = target->flags;
	entry->tty->fown = target->fown;
	entry->tty->has_regf_id = true;
	entry->tty->regf_id = regular_id;
	return 0;
}

/* ---- after all descriptors: sessions, masters outside, queues ---- */

static void find_session(struct dump *dump, struct tty_dump *state, const struct dump_task *task)
{
	_cleanup_free_ char *text = NULL;
	int sid, device, foreground;

	for (size_t i = 0; i < state->session_count; i++)
		if (state->sessions[i].sid == task->sid)
			return;
	if (task->state == TASK_STATE_DEAD || read_text_at(task->proc_dirfd, "stat", &text, NULL) < 0)
		return;
	const char *end_of_name = strrchr(text, ')');
	if (!end_of_name || sscanf(end_of_name, ") %*c %*d %*d %d %d %d", &sid, &device, &foreground) != 3)
		return;
	ARRAY_GROW(state->sessions, state->session_count, state->session_capacity);
	state->sessions[state->session_count++] = (struct tty_session){
		.sid = task->sid,
		.foreground = foreground > 0 ? foreground : 0,
		.device = (unsigned int)device,
		.leader_in_tree = dump_find_task(dump, task->sid) != NULL,
	};
}

static const struct tty_session *session_of(const struct tty_dump *state, dev_t device)
{
	for (size_t i = 0; i < state->session_count; i++)
		if (state->sessions[i].device == device)
			return &state->sessions[i];
	return NULL;
}

static struct dumped_tty *master_of(const struct tty_dump *state, const struct dumped_tty *tty)
{
	return tty->info->pty ? find_tty(state, 2 * tty->info->pty->index + 1) : NULL;
}

static const char *tty_name(struct dump *dump, const struct dumped_tty *tty)
{
	return tty->file && tty->file->task ? dump_fd_name(dump, tty->file->task, tty->file->number) : "a terminal";
}

/* A slave that no descriptor of the tree is open for. */
static int add_closed_slave(struct dump *dump, struct tty_dump *state, uint32_t index, dev_t device)
{
	struct dumped_tty *slave = add_tty(dump, state, 2 * index, TTY_TYPE__PTY);
	const struct dumped_tty *master = find_tty(state, 2 * index + 1);
	_cleanup_fd_ int fd = -1;
	int ret;

	slave->real_device = device;
	slave->info->rdev = device;
	set_pty(dump, slave->info, index);
	ret = dump_file_get(dump, master->file, &fd);
	if (ret < 0)
		return ret;
	ret = tty_settings_read(&dump->arena, fd, slave->info);
	if (ret < 0)
		return fail_errno(&dump->failure, ret, "tty-read", tty_name(dump, master), NULL,
				  "cannot read the terminal's settings");
	return 0;
}

/* A session of the tree has a terminal: is it known? */
static int check_session(struct dump *dump, struct tty_dump *state, const struct tty_session *session)
{
	uint32_t index = minor(session->device);
	bool known = false;

	for (size_t i = 0; i < state->count; i++)
		known |= state->terminals[i].real_device == session->device && !(state->terminals[i].info->id & 1);
	if (known || !session->device || !session->leader_in_tree)
		return 0;
	if (is_pty_slave(session->device) && find_tty(state, 2 * index + 1))
		return add_closed_slave(dump, state, index, session->device);
	return fail(&dump->failure, EBUSY, "task-tty-outside", dump_task_name(dump, dump_find_task(dump, session->sid)),
		    "dump the process that holds the terminal too, or start the program with setsid",
		    "it leads a session with the controlling terminal %u:%u, which is outside the tree",
		    major(session->device), minor(session->device));
}

/* The slave was open and is closed everywhere: its master sees a hangup. */
static int check_master(struct dump *dump, struct tty_dump *state, size_t i)
{
	const struct dumped_tty *master = &state->terminals[i];
	struct pollfd poll_state = {};
	_cleanup_fd_ int fd = -1;
	int ret;

	if (find_tty(state, master->info->id & ~1u))
		return 0;
	ret = dump_file_get(dump, master->file, &fd);
	if (ret < 0)
		return ret;
	poll_state.fd = fd;
	if (poll(&poll_state, 1, 0) == 1 && (poll_state.revents & POLLHUP))
		return add_closed_slave(dump, state, master->info->pty->index, master->real_device);
	return 0;
}

/* A slave without its master in the tree. */
static int check_slave(struct dump *dump, const struct tty_dump *state, const struct dumped_tty *slave)
{
	const struct tty_session *session = session_of(state, slave->real_device);

	/* Hung up: its master is gone for ever, and so are its settings. */
	if (!slave->info->termios)
		return 0;
	if (session && session->leader_in_tree)
		return fail(
			&dump->failure, EBUSY, "fd-tty-outside", tty_name(dump, slave),
			"dump the process that holds the terminal's master too",
			"/dev/pts/%u is the terminal of session %d of this tree, and its master is outside the tree",
			slave->info->pty->index, session->sid);
	if (dump->options->shell_job)
		return 0;
	return fail(&dump->failure, EBUSY, "fd-tty-outside", tty_name(dump, slave),
		    "use --shell-job to give it the terminal of the restore instead, or redirect it to a file",
		    "the terminal /dev/pts/%u belongs to a program outside the tree", slave->info->pty->index);
}

static int check_controlling(struct dump *dump, const struct tty_dump *state, const struct dumped_tty *tty)
{
	const struct tty_session *session = session_of(state, tty->real_device);

	if ((session && session->leader_in_tree) || dump->options->shell_job)
		return 0;
	return fail(&dump->failure, EBUSY, "fd-tty-outside", tty_name(dump, tty),
		    "use --shell-job to give it the terminal of the restore instead",
		    "/dev/tty is a terminal of a session outside the tree");
}

static int check_tty(struct dump *dump, struct tty_dump *state, size_t i)
{
	const struct dumped_tty *tty = &state->terminals[i];

	if (tty->info->type == TTY_TYPE__CTTY)
		return check_controlling(dump, state, tty);
	if (tty->info->type != TTY_TYPE__PTY)
		return 0;
	if (tty->info->id & 1)
		return check_master(dump, state, i);
	return master_of(state, tty) ? 0 : check_slave(dump, state, tty);
}

static void set_session(const struct tty_dump *state, const struct dumped_tty *tty)
{
	const struct tty_session *session = session_of(state, tty->real_device);
	bool is_master = tty->info->type == TTY_TYPE__PTY && (tty->info->id & 1);

	if (!session || is_master)
		return;
	tty->info->sid = session->sid;
	tty->info->pgrp = session->foreground;
}

static int read_queues(struct dump *dump, struct tty_dump *state, struct dumped_tty *master)
{
	struct dumped_tty *slave = find_tty(state, master->info->id & ~1u);
	_cleanup_fd_ int fd = -1, peer = -1;
	int ret;

	/* A slave that never was open has no bytes, and opening it would be the first time. */
	if (!slave || master->info->locked)
		return 0;
	ret = dump_file_get(dump, master->file, &fd);
	if (ret < 0)
		return ret;
	peer = ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	ret = peer < 0 ? -errno : tty_queues_read(fd, peer, master->info->packet_mode, &master->queues);
	if (ret < 0)
		return fail_errno(&dump->failure, ret, "tty-read", tty_name(dump, master), NULL,
				  "cannot read what lies in the terminal's queues");
	return 0;
}

static int write_data(struct image *image, uint32_t id, char *bytes, size_t count)
{
	TtyDataEntry entry = TTY_DATA_ENTRY__INIT;

	if (!count)
		return 0;
	entry.tty_id = id;
	entry.data.data = (uint8_t *)bytes;
	entry.data.len = count;
	return image_write(image, &entry.base);
}

static int write_images(struct dump *dump, const struct tty_dump *state)
{
	struct image *image;
	int ret = image_create(dump->images_dirfd, &dump->failure, IMAGE_TTY_INFO, 0, &image);

	if (ret < 0)
		return ret;
	for (size_t i = 0; i < state->count; i++)
		image_write(image, &state->terminals[i].info->base);
	ret = image_close(&image);
	if (!ret)
		ret = image_create(dump->images_dirfd, &dump->failure, IMAGE_TTY_DATA, 0, &image);
	if (ret < 0)
		return ret;
	for (size_t i = 0; i < state->count; i++) {
		const struct dumped_tty *tty = &state->terminals[i];
		write_data(image, tty->info->id, tty->queues.written, tty->queues.written_bytes);
		write_data(image, tty->info->id & ~1u, tty->queues.typed, tty->queues.typed_bytes);
	}
	return image_close(&image);
}

static int read_all_queues(struct dump *dump, struct tty_dump *state)
{
	int ret = 0;

	for (size_t i = 0; i < state->count && !ret; i++) {
		struct dumped_tty *tty = &state->terminals[i];
		if (tty->info->type == TTY_TYPE__PTY && (tty->info->id & 1))
			ret = read_queues(dump, state, tty);
	}
	return ret;
}

static int tty_dump_finish(struct dump *dump)
{
	struct tty_dump *state = tty_dump_state(dump);
	int ret = 0;

	for (size_t i = 0; i < dump->task_count; i++)
		find_session(dump, state, dump->tasks[i]);
	for (size_t i = 0; i < state->session_count && !ret; i++)
		if (check_session(dump, state, &state->sessions[i]) < 0)
			ret = dump_blocked(dump);
	for (size_t i = 0; i < state->count && !ret; i++)
		if (check_tty(dump, state, i) < 0)
			ret = dump_blocked(dump);
	if (ret < 0 || !state->count || dump->only_explain)
		return ret;
	for (size_t i = 0; i < state->count; i++)
		set_session(state, &state->terminals[i]);
	ret = read_all_queues(dump, state);
	return ret ? ret : write_images(dump, state);
}

static void tty_dump_release(struct dump *dump, bool tree_is_gone)
{
	struct tty_dump *state = tty_dump_state(dump);

	for (size_t i = 0; i < state->count; i++) {
		free(state->terminals[i].queues.typed);
		free(state->terminals[i].queues.written);
	}
	free(state->terminals);
	free(state->sessions);
	memset(state, 0, sizeof(*state));
}

const struct fd_kind tty_kind = {
	.name = "terminal",
	.type = FD_TYPES__TTY,
	.match = tty_match,
	.dump = tty_dump,
	.dump_finish = tty_dump_finish,
	.dump_release = tty_dump_release,
	.prepare = tty_prepare,
	.session_started = tty_session_started,
	.open = tty_open,
	.finish = tty_finish,
	.finish_task = tty_finish_task,
	.before_resume = tty_before_resume,
};
