/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"

#include <fcntl.h>
#include <stdarg.h>
#include <string.h>

int read_full(int fd, void *buffer, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = read(fd, (char *)buffer + done, size - done);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return -errno;
		if (!count)
			return -ENODATA;
		done += count;
	}
	return 0;
}

int write_full(int fd, const void *buffer, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = write(fd, (const char *)buffer + done, size - done);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return -errno;
		done += count;
	}
	return 0;
}

int pread_full(int fd, void *buffer, size_t size, off_t offset)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = pread(fd, (char *)buffer + done, size - done, offset + done);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return -errno;
		if (!count)
			return -ENODATA;
		done += count;
	}
	return 0;
}

int pwrite_full(int fd, const void *buffer, size_t size, off_t offset)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = pwrite(fd, (const char *)buffer + done, size - done, offset + done);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return -errno;
		done += count;
	}
	return 0;
}

int read_text_at(int dirfd, const char *path, char **ret_text, size_t *ret_length)
{
	_cleanup_fd_ int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *text = NULL;
	size_t length = 0, capacity = 4096;

	if (fd < 0)
		return -errno;
	text = xcalloc(1, capacity);
	for (;;) {
		ssize_t count = read(fd, text + length, capacity - length - 1);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return -errno;
		if (!count)
			break;
		length += count;
		if (capacity - length < 1024) {
			capacity *= 2;
			text = xrealloc_array(text, capacity, 1);
		}
	}
	text[length] = '\0';
	*ret_text = TAKE_POINTER(text);
	if (ret_length)
		*ret_length = length;
	return 0;
}

int write_text_at(int dirfd, const char *path, const char *text)
{
	_cleanup_fd_ int fd = openat(dirfd, path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return write_full(fd, text, strlen(text));
}

int read_link_at(int dirfd, const char *path, char **ret_target)
{
	for (size_t size = 256;; size *= 4) {
		_cleanup_free_ char *target = xcalloc(1, size);
		ssize_t length = readlinkat(dirfd, path, target, size);
		if (length < 0)
			return -errno;
		if ((size_t)length < size) {
			target[length] = '\0';
			*ret_target = TAKE_POINTER(target);
			return 0;
		}
	}
}

static void __attribute__((noreturn)) out_of_memory(void)
{
	static const char line[] = "criu: out of memory\n";
	if (write(STDERR_FILENO, line, sizeof(line) - 1) < 0)
		_exit(1);
	_exit(1);
}

void *xcalloc(size_t count, size_t size)
{
	void *memory = calloc(count ? count : 1, size ? size : 1);
	if (!memory)
		out_of_memory();
	return memory;
}

void *xrealloc_array(void *pointer, size_t count, size_t size)
{
	void *memory = reallocarray(pointer, count ? count : 1, size ? size : 1);
	if (!memory)
		out_of_memory();
	return memory;
}

void *xmemdup(const void *from, size_t size)
{
	void *memory = xcalloc(1, size);
	if (size)
		memcpy(memory, from, size);
	return memory;
}

char *xstrdup(const char *text)
{
	return xmemdup(text, strlen(text) + 1);
}

char *xasprintf(const char *format, ...)
{
	va_list arguments;
	char *text;

	va_start(arguments, format);
	int length = vasprintf(&text, format, arguments);
	va_end(arguments);
	if (length < 0)
		out_of_memory();
	return text;
}
