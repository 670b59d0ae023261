/* SPDX-License-Identifier: Apache-2.0 */
#include "base/library.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>

static int fail_missing(const struct library *library, struct failure *failure)
{
	const char *cause = dlerror();
	char hint[80];

	snprintf(hint, sizeof(hint), "install it (Debian: %s)", library->package);
	return fail(failure, ENOPKG, "library-missing", library->file, hint, "needed for %s, cannot be loaded: %s",
		    library->purpose, cause ? cause : "no reason given");
}

int library_load(const struct library *library, void *ret_pointers, struct failure *failure)
{
	void *handle = dlopen(library->file, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
	void **pointers = ret_pointers;

	if (!handle)
		return fail_missing(library, failure);
	for (size_t i = 0; i < library->name_count; i++) {
		pointers[i] = dlsym(handle, library->names[i]);
		if (!pointers[i])
			return fail_missing(library, failure);
	}
	return 0;
}
