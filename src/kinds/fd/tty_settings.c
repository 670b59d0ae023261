/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Settings and queues of terminals.
 *
 * Ioctls on a pty master act on the slave's settings, so one descriptor is enough for a pair.
 *
 * The bytes of a queue can be had only by reading them, and a line that is not complete yet only in raw mode. So the
 * slave is made raw, both queues are read empty, and everything is put back: what the program wrote by writing it
 * again to the slave without output processing, what was typed by TIOCSTI, which hands each byte to the line
 * discipline at once, with echo, signals and editing off and canonical mode as it was, so that the lines are cut again
 * where they were. If criu is killed in these microseconds the bytes in its hands are lost, so it is done only where
 * there can be bytes.
 */
#include "kinds/fd/tty_settings.h"

#include <asm/termbits.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/fd.h"

#ifndef TIOCGLCKTRMIOS
#define TIOCGLCKTRMIOS 0x5456
#define TIOCSLCKTRMIOS 0x5457
#endif

/* A pty's buffers end long before. */
#define QUEUE_LIMIT_BYTES (1 << 20)
/* How long the kernel's worker may take to move bytes from one end of a pty to the other. */
#define MOVE_TIMEOUT_MS 1000

/*
 * The images hold the control characters packed, four to a word, in a list as long as there are characters (so the
 * rest of it means nothing). A list of single characters is understood too.
 */
static void pack_characters(struct arena *arena, const cc_t *characters, TermiosEntry *entry)
{
	entry->n_c_cc = NCCS;
	entry->c_cc = arena_alloc(arena, NCCS * sizeof(*entry->c_cc));
	memcpy(entry->c_cc, characters, NCCS);
}

static void unpack_characters(const TermiosEntry *entry, cc_t *characters)
{
	bool wide = false, behind = false;

	for (size_t i = 0; i < entry->n_c_cc; i++) {
		wide |= entry->c_cc[i] > 255;
		behind |= i >= (NCCS + 3) / 4 && entry->c_cc[i];
	}
	bool packed = wide || !behind;
	for (size_t i = 0; i < NCCS; i++) {
		size_t word = packed ? i / 4 : i;
		if (word < entry->n_c_cc)
			characters[i] = packed ? entry->c_cc[word] >> 8 * (i % 4) : entry->c_cc[word];
	}
}

static TermiosEntry *new_entry(struct arena *arena, const struct termios2 *settings)
{
	TermiosEntry *entry = arena_message(arena, TermiosEntry, termios_entry);

	entry->c_iflag = settings->c_iflag;
	entry->c_oflag = settings->c_oflag;
	entry->c_cflag = settings->c_cflag;
	entry->c_lflag = settings->c_lflag;
	entry->c_line = settings->c_line;
	entry->c_ispeed = settings->c_ispeed;
	entry->c_ospeed = settings->c_ospeed;
	pack_characters(arena, settings->c_cc, entry);
	return entry;
}

static void read_entry(const TermiosEntry *entry, struct termios2 *settings)
{
	settings->c_iflag = entry->c_iflag;
	settings->c_oflag = entry->c_oflag;
	settings->c_cflag = entry->c_cflag;
	settings->c_lflag = entry->c_lflag;
	settings->c_line = entry->c_line;
	settings->c_ispeed = entry->c_ispeed;
	settings->c_ospeed = entry->c_ospeed;
	unpack_characters(entry, settings->c_cc);
}

int tty_settings_read(struct arena *arena, int fd, TtyInfoEntry *info)
{
	struct termios2 settings = {}, locked = {};
	struct winsize size;

	if (ioctl(fd, TCGETS2, &settings) < 0)
		return errno == EIO ? 0 : -errno;
	info->termios = new_entry(arena, &settings);
	/* The older structure is a prefix of the newer one. */
	if (!ioctl(fd, TIOCGLCKTRMIOS, &locked))
		info->termios_locked = new_entry(arena, &locked);
	if (!ioctl(fd, TIOCGWINSZ, &size)) {
		info->winsize = arena_message(arena, WinsizeEntry, winsize_entry);
		info->winsize->ws_row = size.ws_row;
		info->winsize->ws_col = size.ws_col;
		info->winsize->ws_xpixel = size.ws_xpixel;
		info->winsize->ws_ypixel = size.ws_ypixel;
	}
	return 0;
}

static bool has_lock(const struct termios2 *locked)
{
	static const struct termios2 none;

	return memcmp(locked, &none, sizeof(struct termios));
}

int tty_settings_apply(int fd, const TtyInfoEntry *info)
{
	struct termios2 settings = {}, locked = {};

	if (info->termios) {
		if (ioctl(fd, TCGETS2, &settings) < 0)
			return -errno;
		read_entry(info->termios, &settings);
		/* Images of CRIU have no speeds: the flags say them. */
		unsigned long request = settings.c_ospeed ? TCSETS2 : TCSETS;
		if (ioctl(fd, request, &settings) < 0)
			return -errno;
	}
	if (info->winsize) {
		struct winsize size = {
			.ws_row = info->winsize->ws_row,
			.ws_col = info->winsize->ws_col,
			.ws_xpixel = info->winsize->ws_xpixel,
			.ws_ypixel = info->winsize->ws_ypixel,
		};
		if (ioctl(fd, TIOCSWINSZ, &size) < 0)
			return -errno;
	}
	if (info->termios_locked)
		read_entry(info->termios_locked, &locked);
	/* What lies behind the characters in images of CRIU is noise, and locking needs a capability. */
	if (has_lock(&locked) && ioctl(fd, TIOCSLCKTRMIOS, &locked) < 0)
		return -errno;
	return 0;
}

/* Reads until nothing is left; the descriptor may block. Returns 0 or -errno. */
static int drain(int fd, char **bytes, size_t *count)
{
	struct pollfd state = {.fd = fd, .events = POLLIN};
	size_t capacity = *count;

	/* poll() makes the kernel's worker finish first if nothing is there. */
	while (*count < QUEUE_LIMIT_BYTES && poll(&state, 1, 0) == 1 && (state.revents & POLLIN)) {
		if (capacity - *count < 4096) {
			capacity += 65536;
			*bytes = xrealloc_array(*bytes, capacity, 1);
		}
		ssize_t got = read(fd, *bytes + *count, capacity - *count);
		/* EIO: the other end has been closed, this is the end. */
		if (got < 0 && errno != EAGAIN && errno != EINTR && errno != EIO)
			return -errno;
		if (got <= 0)
			break;
		*count += got;
	}
	return 0;
}

/* As if the program had written it. */
static int put_written(int slave, const char *bytes, size_t count)
{
	struct pollfd state = {.fd = slave, .events = POLLOUT};
	bool stopped = false;
	int ret = 0;

	/* With room for everything, only a stopped terminal (^S) refuses. */
	if (count && poll(&state, 1, 0) == 0)
		stopped = !ioctl(slave, TCXONC, TCOON);
	while (count && !ret) {
		ssize_t done = write(slave, bytes, count);
		if (done > 0) {
			bytes += done;
			count -= done;
		} else if (done < 0 && errno != EAGAIN && errno != EINTR) {
			ret = -errno;
		} else if (poll(&state, 1, MOVE_TIMEOUT_MS) <= 0) {
			ret = -EAGAIN;
		}
	}
	if (stopped)
		ioctl(slave, TCXONC, TCOOFF);
	return ret;
}

/* As if it had been typed. */
static int put_typed(int slave, const char *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (ioctl(slave, TIOCSTI, &bytes[i]) < 0)
			return -errno;
	return 0;
}

/* Every byte goes through as it is; lines are cut as before. */
static struct termios2 transparent(const struct termios2 *settings)
{
	static const unsigned char editing[] = {VINTR, VQUIT, VERASE, VKILL,    VEOF,    VSTART,
						VSTOP, VSUSP, VLNEXT, VREPRINT, VWERASE, VDISCARD};
	struct termios2 changed = *settings;

	changed.c_iflag = 0;
	changed.c_oflag = 0;
	changed.c_lflag &= ~(tcflag_t)(ECHO | ECHOE | ECHOK | ECHONL | ECHOCTL | ISIG);
	for (size_t i = 0; i < sizeof(editing); i++)
		changed.c_cc[editing[i]] = '\0';
	return changed;
}

int tty_queues_fill(int master, int slave, const struct tty_queues *queues)
{
	struct termios2 settings, changed;
	int ret = 0;

	if (!queues->typed_bytes && !queues->written_bytes)
		return 0;
	if (ioctl(master, TCGETS2, &settings) < 0)
		return -errno;
	changed = transparent(&settings);
	if (ioctl(master, TCSETS2, &changed) < 0)
		return -errno;
	ret = put_written(slave, queues->written, queues->written_bytes);
	if (!ret)
		ret = put_typed(slave, queues->typed, queues->typed_bytes);
	if (ioctl(master, TCSETS2, &settings) < 0 && !ret)
		ret = -errno;
	return ret;
}

static int take_out(int master, int slave, const struct termios2 *settings, struct tty_queues *queues)
{
	struct termios2 raw = transparent(settings);
	int ret;

	raw.c_lflag &= ~(tcflag_t)(ICANON | IEXTEN | EXTPROC);
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	if (ioctl(master, TCSETS2, &raw) < 0)
		return -errno;
	ret = drain(slave, &queues->typed, &queues->typed_bytes);
	if (!ret)
		ret = drain(master, &queues->written, &queues->written_bytes);
	if (ioctl(master, TCSETS2, settings) < 0 && !ret)
		ret = -errno;
	return ret;
}

static bool may_have_bytes(int master, int slave, const struct termios2 *settings)
{
	int typed = 0, written = 0;

	/* How much of a line that is not complete is there, nobody tells. */
	if (settings->c_lflag & ICANON)
		return true;
	return ioctl(slave, FIONREAD, &typed) < 0 || ioctl(master, FIONREAD, &written) < 0 || typed || written;
}

int tty_queues_read(int master, int slave, bool packet_mode, struct tty_queues *ret_queues)
{
	const int on = 1, off = 0;
	struct tty_queues queues = {};
	struct termios2 settings;
	int ret;

	if (ioctl(master, TCGETS2, &settings) < 0)
		return -errno;
	*ret_queues = queues;
	if (!may_have_bytes(master, slave, &settings))
		return 0;
	/* In packet mode each read begins with a byte that is not the program's. */
	if (packet_mode && ioctl(master, TIOCPKT, &off) < 0)
		return -errno;
	ret = take_out(master, slave, &settings, &queues);
	int put_back = tty_queues_fill(master, slave, &queues);
	if (packet_mode && ioctl(master, TIOCPKT, &on) < 0 && !ret)
		ret = -errno;
	*ret_queues = queues;
	return ret ? ret : put_back;
}
