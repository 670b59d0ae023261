/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of image files, and what reading and writing share: names, opening, magics, positions.
 *
 * Files have two magics, those of netlink dumps, texts and pages none, the inventory one. Two kinds can have the same
 * magics (pagemap-5.img, pagemap-shmem-5.img): then only the name of the file says which of them it is.
 */
#include "image/image_file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "image/image_schema.h"

#define NONE__descriptor (*(const ProtobufCMessageDescriptor *)NULL)

const struct image_description image_descriptions[IMAGE_KIND_COUNT] = {
#define IMAGE_KIND(kind_name, file_pattern, head, file_magic, entry, follows) \
	[IMAGE_##kind_name] = {.name = #kind_name,                            \
			       .pattern = file_pattern,                       \
			       .head_magic = head,                            \
			       .magic = file_magic,                           \
			       .message = &entry##__descriptor,               \
			       .payload = IMAGE_PAYLOAD_##follows},
#include "image/image_kinds.def"
#undef IMAGE_KIND
};

char *image_name(enum image_kind kind, uint64_t id, char *buffer, size_t size)
{
	const char *pattern = image_descriptions[kind].pattern;
	const char *conversion = strchr(pattern, '%');

	if (!conversion) {
		snprintf(buffer, size, "%s", pattern);
		return buffer;
	}
	int prefix = conversion - pattern;
	const char *rest = conversion + 1;
	if (*rest == 'l')
		rest++;
	if (*rest == 's')
		snprintf(buffer, size, "%.*s%s%s", prefix, pattern, id ? "restore" : "dump", rest + 1);
	else if (*rest == 'x')
		snprintf(buffer, size, "%.*s%" PRIx64 "%s", prefix, pattern, id, rest + 1);
	else
		snprintf(buffer, size, "%.*s%" PRIu64 "%s", prefix, pattern, id, rest + 1);
	return buffer;
}

/* Whether a file's name is one that the pattern makes. */
static bool name_matches(const char *pattern, const char *name)
{
	const char *conversion = strchr(pattern, '%');

	if (!conversion)
		return !strcmp(pattern, name);
	size_t prefix = conversion - pattern;
	if (strncmp(pattern, name, prefix))
		return false;
	name += prefix;
	conversion += conversion[1] == 'l' ? 2 : 1;
	if (*conversion == 's')
		return !strcmp(name, "dump") || !strcmp(name, "restore");
	size_t digits = strspn(name, *conversion == 'x' ? "0123456789abcdef" : "0123456789");
	return digits && !strcmp(name + digits, conversion + 1);
}

int image_kind_of_name(const char *path, enum image_kind *ret_kind)
{
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;

	for (int kind = 0; kind < IMAGE_KIND_COUNT; kind++)
		if (name_matches(image_descriptions[kind].pattern, name)) {
			*ret_kind = kind;
			return 0;
		}
	return -ENOENT;
}

/* The first kind with these magics that is no longer written only by old versions; NULL if there is none. */
static const struct image_description *description_of_magic(uint32_t head, uint32_t magic)
{
	for (int kind = 0; kind < IMAGE_KIND_COUNT; kind++) {
		const struct image_description *description = &image_descriptions[kind];
		size_t length = strlen(description->name);
		bool old = length > 4 && !strcmp(description->name + length - 4, "_OLD");
		if (description->magic && !old && description->head_magic == head && description->magic == magic)
			return description;
	}
	return NULL;
}

static struct image *image_new(struct failure *failure, enum image_kind kind, const char *name)
{
	struct image *image = xcalloc(1, sizeof(*image));

	image->failure = failure;
	image->kind = kind;
	image->fd = -1;
	image->size_bytes = -1;
	image->buffer = xcalloc(1, IMAGE_BUFFER_BYTES);
	snprintf(image->name, sizeof(image->name), "%s", name);
	const struct image_description *description = &image_descriptions[kind];
	image->header_bytes = (description->head_magic ? 4 : 0) + (description->magic ? 4 : 0);
	return image;
}

static void image_free(struct image *image)
{
	close_fd_pointer(&image->fd);
	free(image->buffer);
	free(image);
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

int image_create_at(int dirfd, const char *path, struct failure *failure, enum image_kind kind,
		    struct image **ret_image)
{
	const struct image_description *description = &image_descriptions[kind];
	struct image *image = image_new(failure, kind, base_name(path));

	image->writing = true;
	image->fd = openat(dirfd, path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (image->fd < 0) {
		int error = fail_errno(failure, errno, "image-create", path,
				       "the images directory must exist and be writable", "cannot be created");
		image_free(image);
		return error;
	}
	if (description->head_magic)
		image_write_raw(image, &description->head_magic, sizeof(description->head_magic));
	if (description->magic)
		image_write_raw(image, &description->magic, sizeof(description->magic));
	*ret_image = image;
	return 0;
}

int image_create(int dirfd, struct failure *failure, enum image_kind kind, uint64_t id, struct image **ret_image)
{
	char name[64];

	return image_create_at(dirfd, image_name(kind, id, name, sizeof(name)), failure, kind, ret_image);
}

static int wrong_magic(struct image *image, uint32_t head, uint32_t magic)
{
	const struct image_description *wanted = &image_descriptions[image->kind];
	const struct image_description *found = description_of_magic(head, magic);

	if (!found && head == image_descriptions[IMAGE_INVENTORY].magic)
		found = &image_descriptions[IMAGE_INVENTORY];
	if (found)
		return fail(image->failure, EINVAL, "image-magic", image->name,
			    "restore the files of one dump together", "wrong magic 0x%08x: this is a %s image, not %s",
			    found->head_magic ? magic : head, found->name, wanted->name);
	return fail(image->failure, EINVAL, "image-magic", image->name,
		    "the file is damaged or was not written by a dump",
		    "wrong magic 0x%08x 0x%08x: this is not a %s image", head, magic, wanted->name);
}

static int check_magics(struct image *image)
{
	const struct image_description *description = &image_descriptions[image->kind];
	uint32_t head = 0, magic = 0;

	if (description->head_magic && image_read_raw(image, &head, sizeof(head)) < 0)
		return -image->failure->error;
	if (description->magic && image_read_raw(image, &magic, sizeof(magic)) < 0)
		return -image->failure->error;
	if (head == description->head_magic && magic == description->magic)
		return 0;
	/* A file that begins like the inventory, or the inventory's name on another file: tell by both words. */
	if (!description->head_magic) {
		head = magic;
		magic = 0;
		if (image->size_bytes < 0 || image->size_bytes >= 8)
			image_read_raw(image, &magic, sizeof(magic));
	}
	return wrong_magic(image, head, magic);
}

int image_open_at(int dirfd, const char *path, struct failure *failure, enum image_kind kind, struct image **ret_image)
{
	/* O_NONBLOCK: a fifo in the place of an image must not hang us. Regular files do not care. */
	int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat stat;

	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0 || fstat(fd, &stat) < 0) {
		int error = fail_errno(failure, errno, "image-open", path, NULL, "cannot be opened");
		close_fd_pointer(&fd);
		return error;
	}
	struct image *image = image_new(failure, kind, base_name(path));
	image->fd = fd;
	if (S_ISREG(stat.st_mode))
		image->size_bytes = stat.st_size;
	int error = check_magics(image);
	if (error) {
		image_free(image);
		return error;
	}
	*ret_image = image;
	return 0;
}

int image_open(int dirfd, struct failure *failure, enum image_kind kind, uint64_t id, struct image **ret_image)
{
	char name[64];

	return image_open_at(dirfd, image_name(kind, id, name, sizeof(name)), failure, kind, ret_image);
}

/* The kind that a file's magics tell. */
static int kind_of_magics(int dirfd, const char *path, struct failure *failure, enum image_kind *ret_kind)
{
	_cleanup_fd_ int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	uint32_t magics[2] = {0};

	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0)
		return fail_errno(failure, errno, "image-open", path, NULL, "cannot be opened");
	int error = pread_full(fd, magics, sizeof(magics), 0);
	if (error && error != -ENODATA)
		return fail_errno(failure, error, "image-read", path, NULL, "cannot be read");
	const struct image_description *description = description_of_magic(magics[0], magics[1]);
	if (!description)
		description = description_of_magic(0, magics[0]);
	if (!description)
		return fail(failure, EINVAL, "image-magic", path, "images of pages, netlink and text have no entries",
			    "0x%08x 0x%08x are not the magics of an image", magics[0], magics[1]);
	*ret_kind = description - image_descriptions;
	return 0;
}

int image_open_any(int dirfd, const char *path, struct failure *failure, struct image **ret_image)
{
	enum image_kind kind = IMAGE_KIND_COUNT;
	int error = kind_of_magics(dirfd, path, failure, &kind);

	return error ? error : image_open_at(dirfd, path, failure, kind, ret_image);
}

int image_close(struct image **image_pointer)
{
	struct image *image = *image_pointer;

	if (!image)
		return 0;
	if (image->writing)
		image_flush(image);
	int error = image->error;
	/* File systems of the network tell at the close that nothing was stored. */
	if (close(TAKE_FD(image->fd)) < 0 && image->writing && !error)
		error = fail_errno(image->failure, errno, "image-write", image->name, NULL, "cannot be closed");
	image_free(image);
	*image_pointer = NULL;
	return error;
}

enum image_kind image_kind(const struct image *image)
{
	return image->kind;
}

const char *image_file_name(const struct image *image)
{
	return image->name;
}

void image_take_position(struct image *image)
{
	if (!image->fd_is_shared)
		return;
	image->fd_is_shared = false;
	off_t position = lseek(image->fd, 0, SEEK_CUR);
	if (position >= 0)
		image->offset = position;
}

off_t image_offset(const struct image *image)
{
	off_t position = image->fd_is_shared ? lseek(image->fd, 0, SEEK_CUR) : -1;

	if (position >= 0)
		return position;
	return image->writing ? image->offset + (off_t)image->end : image->offset - (off_t)(image->end - image->start);
}

int image_fd(struct image *image)
{
	if (image->writing) {
		image_flush(image);
	} else if (!image->fd_is_shared) {
		off_t offset = image_offset(image);
		if (lseek(image->fd, offset, SEEK_SET) >= 0) {
			image->offset = offset;
			image->start = image->end = 0;
		}
	}
	image->fd_is_shared = true;
	return image->fd;
}

int image_seek(struct image *image, off_t offset)
{
	if (image->writing && image_flush(image) < 0)
		return image->error;
	off_t buffer_start = image->offset - (off_t)image->end;
	if (!image->writing && !image->fd_is_shared && offset >= buffer_start && offset <= image->offset) {
		image->start = offset - buffer_start;
		return 0;
	}
	if (offset < 0 || lseek(image->fd, offset, SEEK_SET) < 0) {
		image->error = fail_errno(image->failure, offset < 0 ? EINVAL : errno, "image-seek", image->name, NULL,
					  "no position %lld", (long long)offset);
		return image->error;
	}
	image->fd_is_shared = false;
	image->offset = offset;
	image->start = image->end = 0;
	return 0;
}
