/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ptys that are nobody's controlling terminal: settings, window size, what was typed and what was written, packet
 * mode, a master whose slave is closed, a slave whose master is closed, one that was never opened.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static struct pty {
	int master, slave;
	char name[64];
} plain, raw, packet, again;

static void open_pair(struct pty *pty)
{
	MUST(openpty(&pty->master, &pty->slave, pty->name, NULL, NULL));
}

static void set_raw(int fd)
{
	struct termios settings;

	MUST(tcgetattr(fd, &settings));
	cfmakeraw(&settings);
	MUST(tcsetattr(fd, TCSANOW, &settings));
}

static void check_read(int fd, const char *text, const char *what)
{
	char buffer[256];
	ssize_t got = 0;

	if (poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 10000) == 1)
		got = read(fd, buffer, sizeof(buffer));
	CHECK(got == (ssize_t)strlen(text) && !memcmp(buffer, text, got), "%s: got %zd bytes: %.*s", what, got,
	      (int)(got > 0 ? got : 0), buffer);
}

static bool is_readable(int fd)
{
	return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0) == 1;
}

int main(void)
{
	struct winsize size = {.ws_row = 33, .ws_col = 101, .ws_xpixel = 7, .ws_ypixel = 9}, found;
	struct termios settings, now;
	int closed_master, closed_slave, hung_master, hung_slave, never, on = 1;
	char name[64];

	open_pair(&plain);
	open_pair(&raw);
	open_pair(&packet);
	MUST(openpty(&closed_master, &closed_slave, NULL, NULL, NULL));
	MUST(close(closed_slave));
	MUST(openpty(&hung_master, &hung_slave, NULL, NULL, NULL));
	MUST(close(hung_master));
	/* Most likely with the number of the one that is hung up. */
	MUST(openpty(&again.master, &again.slave, again.name, NULL, NULL));
	never = MUST(posix_openpt(O_RDWR | O_NOCTTY));
	MUST(ioctl(plain.master, TIOCSWINSZ, &size));
	MUST(tcgetattr(plain.slave, &settings));
	settings.c_cc[VINTR] = 'x';
	settings.c_cc[VEOL2] = '#';
	settings.c_iflag |= IUTF8;
	cfsetspeed(&settings, B9600);
	MUST(tcsetattr(plain.slave, TCSANOW, &settings));
	MUST(tcgetattr(plain.slave, &settings));
	set_raw(raw.slave);
	MUST(fcntl(raw.slave, F_SETFL, O_NONBLOCK));
	set_raw(packet.slave);
	MUST(ioctl(packet.master, TIOCPKT, &on));

	harness_ready();
	while (harness_wait_check()) {
		CHECK(!ioctl(plain.slave, TIOCGWINSZ, &found) && !memcmp(&found, &size, sizeof(size)), "%dx%d",
		      found.ws_col, found.ws_row);
		CHECK(!tcgetattr(plain.slave, &now) && now.c_iflag == settings.c_iflag &&
			      now.c_oflag == settings.c_oflag && now.c_cflag == settings.c_cflag &&
			      now.c_lflag == settings.c_lflag && !memcmp(now.c_cc, settings.c_cc, 19),
		      "flags %x %x %x %x", now.c_iflag, now.c_oflag, now.c_cflag, now.c_lflag);
		CHECK(!ttyname_r(plain.slave, name, sizeof(name)) && !strcmp(name, plain.name), "%s", name);
		CHECK(!ptsname_r(plain.master, name, sizeof(name)) && !strcmp(name, plain.name), "%s", name);

		/* Canonical: two lines and a piece of a third lie there, and their echo. From the second check on. */
		static int checks;
		if (checks++) {
			check_read(plain.slave, "one\n", "typed");
			check_read(plain.slave, "two\n", "typed");
			CHECK(!is_readable(plain.slave), "a line that is not complete");
			CHECK(write(plain.master, "ree#\n", 5) == 5);
			check_read(plain.slave, "three#", "typed");
			check_read(plain.slave, "\n", "typed");
			check_read(raw.slave, "a\003b\n", "raw");
			check_read(raw.master, "c\rd\n", "raw");
			check_read(packet.slave, "p", "packet");
			char bytes[16] = "";
			CHECK(read(packet.master, bytes, sizeof(bytes)) == 2 && bytes[0] == 0 && bytes[1] == 'q',
			      "%d %d", bytes[0], bytes[1]);
			while (is_readable(plain.master) && read(plain.master, name, sizeof(name)) > 0)
				;
		}
		CHECK(write(plain.master, "one\ntwo\nth", 10) == 10);
		CHECK(write(raw.master, "a\003b\n", 4) == 4 && write(raw.slave, "c\rd\n", 4) == 4);
		CHECK(write(packet.master, "p", 1) == 1 && write(packet.slave, "q", 1) == 1);
		/* Echo of the last byte: all has arrived. */
		CHECK(poll(&(struct pollfd){.fd = plain.master, .events = POLLIN}, 1, 10000) == 1);

		CHECK(read(closed_master, name, 1) == -1 && errno == EIO, "a master whose slave is closed");
		CHECK(read(hung_slave, name, 1) == 0, "a slave whose master is closed");
		CHECK(tcgetattr(hung_slave, &now) == -1 && errno == EIO);
		CHECK(!ttyname_r(again.slave, name, sizeof(name)) && !strcmp(name, again.name), "%s", name);
		CHECK(!(poll(&(struct pollfd){.fd = never}, 1, 0)), "a slave that was never opened");
		harness_report();
	}
	return 0;
}
