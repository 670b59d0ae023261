/* SPDX-License-Identifier: Apache-2.0 */
/* A library that is loaded when it is needed, and one line for one that is not there. */
#include "unit.h"

#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/library.h"

#define FUNCTIONS(F) F(strlen) F(atoi)

struct functions {
	FUNCTIONS(LIBRARY_POINTER)
};

static const char *const names[] = {FUNCTIONS(LIBRARY_NAME)};

static void test_found(void **state)
{
	const struct library library = {"libc.so.6", "libc6", "counting", names, ARRAY_SIZE(names)};
	struct failure failure = {};
	struct functions loaded;

	assert_int_equal(library_load(&library, &loaded, &failure), 0);
	assert_int_equal(loaded.strlen("four"), 4);
	assert_int_equal(loaded.atoi("17"), 17);
}

static void test_missing_file(void **state)
{
	const struct library library = {"libnobody-has-this.so.7", "libnobody7", "counting", names, ARRAY_SIZE(names)};
	struct failure failure = {};
	struct functions loaded;

	assert_int_equal(library_load(&library, &loaded, &failure), -ENOPKG);
	assert_string_equal(failure.code, "library-missing");
	assert_string_equal(failure.object, "libnobody-has-this.so.7");
	assert_non_null(strstr(failure.cause, "needed for counting"));
	assert_non_null(strstr(failure.hint, "libnobody7"));
}

static void test_missing_function(void **state)
{
	static const char *const wrong[] = {"strlen", "nobody_has_this"};
	const struct library library = {"libc.so.6", "libc6", "counting", wrong, ARRAY_SIZE(wrong)};
	struct failure failure = {};
	struct functions loaded;

	assert_int_equal(library_load(&library, &loaded, &failure), -ENOPKG);
	assert_non_null(strstr(failure.cause, "nobody_has_this"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_found),
		cmocka_unit_test(test_missing_file),
		cmocka_unit_test(test_missing_function),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
