/* SPDX-License-Identifier: Apache-2.0 */
/* The bar fits the terminal: what it draws over itself never takes a second line. */
#include "unit.h"

#include <errno.h>
#include <pty.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "cmd/command.h"
#include "model/options.h"

/* Draws on a terminal of @columns for work of @total_bytes. Gives what stands between the carriage return and ESC. */
static void draw_on(unsigned short columns, uint64_t total_bytes, char *ret_line, size_t size)
{
	struct winsize window = {.ws_row = 24, .ws_col = columns};
	struct progress_display display = {.terminal = true};
	struct progress progress = {.stage = "memory", .done_bytes = 1234567890, .total_bytes = total_bytes};
	int master, terminal, standard_error = dup(STDERR_FILENO);

	assert_true(standard_error >= 0);
	assert_int_equal(openpty(&master, &terminal, NULL, NULL, &window), 0);
	assert_int_equal(dup2(terminal, STDERR_FILENO), STDERR_FILENO);
	progress_show(&display, &progress);
	/* Two seconds ago. */
	display.start_ns -= 2000000000;
	progress_show(&display, &progress);
	ssize_t length = read(master, ret_line, size - 1);
	assert_int_equal(dup2(standard_error, STDERR_FILENO), STDERR_FILENO);
	assert_true(length > 1);
	ret_line[length] = '\0';
	close(standard_error);
	close(terminal);
	close(master);
	char *end = strchr(ret_line, '\033');
	assert_non_null(end);
	*end = '\0';
	assert_int_equal(*ret_line, '\r');
	memmove(ret_line, ret_line + 1, strlen(ret_line));
}

static void test_line_fits(void **state)
{
	static const unsigned short columns[] = {1, 10, 20, 40, 60, 80, 81, 200};
	char line[512];

	for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
		draw_on(columns[i], 5000000000, line, sizeof(line));
		assert_true(strlen(line) < columns[i] || columns[i] == 1);
		draw_on(columns[i], 0, line, sizeof(line));
		assert_true(strlen(line) < columns[i] || columns[i] == 1);
	}
}

static void test_bar_gives_way(void **state)
{
	char line[512];

	draw_on(200, 5000000000, line, sizeof(line));
	assert_non_null(strstr(line, "[#######.......................]  24 %"));
	assert_non_null(strstr(line, " left"));
	draw_on(80, 5000000000, line, sizeof(line));
	assert_non_null(strchr(line, '#'));
	assert_non_null(strstr(line, " left"));
	draw_on(40, 5000000000, line, sizeof(line));
	assert_null(strchr(line, '#'));
	assert_non_null(strstr(line, "24 %"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_line_fits),
		cmocka_unit_test(test_bar_gives_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
