/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared libraries that are loaded by who needs them. One that criu is linked with costs every run of it its start, and
 * every process of a restore its mappings; few runs need GnuTLS or nftables, which bring a dozen others with them.
 *
 * A library's functions are listed once, by a macro:
 *
 *	#define NAME_FUNCTIONS(F) F(name_open) F(name_close)
 *	struct name { NAME_FUNCTIONS(LIBRARY_POINTER) };
 *	static const char *const names[] = {NAME_FUNCTIONS(LIBRARY_NAME)};
 */
#pragma once

#include <stddef.h>

#include "base/fail.h"

#define LIBRARY_POINTER(symbol) typeof(symbol) *symbol;
#define LIBRARY_NAME(symbol) #symbol,

struct library {
	const char *file;    /* name with its version, as the linker knows it: "libnftables.so.1" */
	const char *package; /* Debian's, for the hint */
	const char *purpose; /* what it is needed for: "TLS" */
	const char *const *names;
	size_t name_count;
};

/*
 * Loads the library, or finds it loaded, and writes the address of each name to @ret_pointers, a struct of as many
 * pointers in the same order. It stays until the process ends: what it has started by itself cannot be taken away.
 * Returns 0 or a failure, which names what is missing.
 */
int library_load(const struct library *library, void *ret_pointers, struct failure *failure);
