/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/gnutls_library.h"

#include "base/fd.h"

int gnutls_load(struct gnutls *ret_gnutls, struct failure *failure)
{
	static const char *const names[] = {GNUTLS_FUNCTIONS(LIBRARY_NAME)};
	static const struct library library = {
		.file = "libgnutls.so.30",
		.package = "libgnutls30",
		.purpose = "TLS",
		.names = names,
		.name_count = ARRAY_SIZE(names),
	};

	return library_load(&library, ret_gnutls, failure);
}
