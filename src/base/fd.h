/* SPDX-License-Identifier: Apache-2.0 */
/* Owned descriptors, memory and streams that close themselves, and whole-buffer input and output. */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static inline void close_fd_pointer(const int *fd)
{
	if (*fd >= 0) {
		int saved = errno;
		close(*fd);
		errno = saved;
	}
}

static inline void free_pointer(void *pointer)
{
	free(*(void **)pointer);
}

static inline void close_dir_pointer(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

#define _cleanup_fd_ __attribute__((cleanup(close_fd_pointer)))
#define _cleanup_free_ __attribute__((cleanup(free_pointer)))
#define _cleanup_dir_ __attribute__((cleanup(close_dir_pointer)))

/* Gives a descriptor or pointer away: the variable no longer owns it. */
#define TAKE_FD(fd)                  \
	({                           \
		int taken_fd = (fd); \
		(fd) = -1;           \
		taken_fd;            \
	})
#define TAKE_POINTER(pointer)                              \
	({                                                 \
		typeof(pointer) taken_pointer = (pointer); \
		(pointer) = NULL;                          \
		taken_pointer;                             \
	})

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

/* Reads exactly @size bytes. Returns 0, -errno, or -ENODATA if the file ends before. */
int read_full(int fd, void *buffer, size_t size);
/* Writes exactly @size bytes. Returns 0 or -errno. */
int write_full(int fd, const void *buffer, size_t size);
int pread_full(int fd, void *buffer, size_t size, off_t offset);
int pwrite_full(int fd, const void *buffer, size_t size, off_t offset);

/*
 * Reads a whole file (of /proc too, where sizes are unknown) relative to @dirfd into a new buffer that ends in a
 * NUL byte not counted in the length. The caller frees *ret_text. @ret_length may be NULL. Returns 0 or -errno.
 */
int read_text_at(int dirfd, const char *path, char **ret_text, size_t *ret_length);
/* Writes @text over the content of an existing file. Returns 0 or -errno. */
int write_text_at(int dirfd, const char *path, const char *text);
/* The target of a symbolic link as a new string without length limit. Returns 0 or -errno. */
int read_link_at(int dirfd, const char *path, char **ret_target);

/* malloc family for small bookkeeping: out of memory there ends the program with one line (exit 1). */
void *xcalloc(size_t count, size_t size) __attribute__((malloc));
void *xrealloc_array(void *pointer, size_t count, size_t size);
void *xmemdup(const void *from, size_t size);
char *xstrdup(const char *text);
char *xasprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Doubling growth: makes room for one more element of @array with @count used and @capacity allocated. */
#define ARRAY_GROW(array, count, capacity)                                               \
	do {                                                                             \
		if ((count) == (capacity)) {                                             \
			(capacity) = (capacity) ? (capacity)*2 : 8;                      \
			(array) = xrealloc_array((array), (capacity), sizeof(*(array))); \
		}                                                                        \
	} while (0)
