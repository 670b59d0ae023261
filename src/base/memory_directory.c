/* SPDX-License-Identifier: Apache-2.0 */
#include "base/memory_directory.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/fd.h"

/* A tmpfs that is mounted nowhere (fsopen(2), Linux 5.2). */
int memory_directory_open(const char *size, struct failure *failure, int *ret_dirfd)
{
	_cleanup_fd_ int context = fsopen("tmpfs", FSOPEN_CLOEXEC);
	int mount = -1;

	if (context >= 0 && !fsconfig(context, FSCONFIG_SET_STRING, "mode", "0700", 0) &&
	    (!size || !fsconfig(context, FSCONFIG_SET_STRING, "size", size, 0)) &&
	    !fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		mount = fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
	if (mount < 0)
		return fail_errno(failure, errno, "memory-directory", NULL, errno == EPERM ? "run criu as root" : NULL,
				  "cannot make a file system in memory");
	*ret_dirfd = mount;
	return 0;
}
