/* SPDX-License-Identifier: Apache-2.0 */
#include "kinds/fd/fdinfo.h"

#include <fcntl.h>
#include <stdio.h>

#include "base/fd.h"
#include "kernel/proc.h"

#define CHANGEABLE_FLAGS (O_APPEND | O_NONBLOCK | O_DIRECT | O_ASYNC)

int fdinfo_read(struct dump *dump, int fd, char **ret_text)
{
	char path[48];
	int ret;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	ret = read_text_at(AT_FDCWD, path, ret_text, NULL);
	if (ret < 0)
		return fail_errno(&dump->failure, ret, "fd-fdinfo", NULL, NULL, "cannot read its fdinfo in /proc");
	return 0;
}

int fdinfo_number(struct dump *dump, const char *text, const char *name, int base, uint64_t *ret_number)
{
	const char *value = proc_field(text, name);
	char *end;

	if (value) {
		uint64_t number = strtoull(value, &end, base);
		if (end != value) {
			*ret_number = number;
			return 0;
		}
	}
	return fail(&dump->failure, EOPNOTSUPP, "fd-fdinfo", NULL, NULL,
		    "this kernel does not tell its \"%s\" in fdinfo", name);
}

int status_flags_restore(struct restore *restore, int fd, uint32_t flags)
{
	int now = fcntl(fd, F_GETFL);

	if (now < 0)
		return fail_errno(&restore->failure, errno, "fd-flags", NULL, NULL, "cannot read its flags");
	if ((now & CHANGEABLE_FLAGS) == (int)(flags & CHANGEABLE_FLAGS))
		return 0;
	if (fcntl(fd, F_SETFL, (now & ~CHANGEABLE_FLAGS) | (int)(flags & CHANGEABLE_FLAGS)) < 0)
		return fail_errno(&restore->failure, errno, "fd-flags", NULL, NULL, "cannot set its flags to 0%o",
				  flags);
	return 0;
}
