/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fifos: content, both ends, one end without a partner, opened for both, deleted.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void check_content(int reader, int writer, const char *text)
{
	char buffer[256];

	CHECK(poll(&(struct pollfd){.fd = reader, .events = POLLIN}, 1, 0) == 1, "nothing in %d", reader);
	ssize_t got = read(reader, buffer, sizeof(buffer));
	CHECK(got == (ssize_t)strlen(text) && !memcmp(buffer, text, got), "got %zd bytes of \"%s\"", got, text);
	CHECK(write(writer, text, strlen(text)) == (ssize_t)strlen(text));
}

int main(void)
{
	char byte;

	signal(SIGPIPE, SIG_IGN);
	MUST(mkfifo("pair", 0640));
	MUST(mkfifo("both", 0600));
	MUST(mkfifo("lonely", 0600));
	MUST(mkfifo("unread", 0600));
	int reader = MUST(open("pair", O_RDONLY | O_NONBLOCK));
	int writer = MUST(open("pair", O_WRONLY));
	MUST(fcntl(reader, F_SETFL, 0));
	MUST(write(writer, "through a name", 14));
	int both = MUST(open("both", O_RDWR));
	MUST(fcntl(both, F_SETPIPE_SZ, 8192));
	MUST(write(both, "in the fifo", 11));
	int lonely = MUST(open("lonely", O_RDONLY | O_NONBLOCK));
	int unread_reader = MUST(open("unread", O_RDONLY | O_NONBLOCK));
	int unread = MUST(open("unread", O_WRONLY | O_NONBLOCK));
	MUST(close(unread_reader));

	MUST(mkfifo("gone", 0600));
	int gone = MUST(open("gone", O_RDWR | O_NONBLOCK));
	MUST(write(gone, "no name", 7));
	MUST(unlink("gone"));

	harness_ready();
	while (harness_wait_check()) {
		CHECK(fcntl(reader, F_GETFL) == (O_RDONLY | 0100000), "flags 0%o", fcntl(reader, F_GETFL));
		CHECK((fcntl(writer, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_WRONLY);
		check_content(reader, writer, "through a name");
		CHECK(fcntl(both, F_GETPIPE_SZ) == 8192, "%d", fcntl(both, F_GETPIPE_SZ));
		check_content(both, both, "in the fifo");
		check_content(gone, gone, "no name");
		CHECK(access("gone", F_OK) == -1, "the deleted fifo has a name again");
		CHECK(read(lonely, &byte, 1) == 0, "a reader without writers");
		CHECK(write(unread, "x", 1) == -1 && errno == EPIPE, "a writer without readers");
		/* The name leads to the open ends. */
		int partner = open("lonely", O_WRONLY | O_NONBLOCK);
		CHECK(partner >= 0, "%m");
		CHECK(write(partner, "y", 1) == 1 && read(lonely, &byte, 1) == 1 && byte == 'y');
		close(partner);
		harness_report();
	}
	return 0;
}
