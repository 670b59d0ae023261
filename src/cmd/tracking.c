/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/tracking.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/log.h"
#include "image/image.h"
#include "image/page_chain.h"

#include "inventory.pb-c.h"

static const char link_name[] = "parent";

static int open_previous(struct command *command, int *ret_dirfd)
{
	const char *path = command->options->prev_images_dir;
	_cleanup_fd_ int fd = openat(command->images_dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat previous, own;
	char object[320];

	snprintf(object, sizeof(object), "previous images directory %s", path);
	if (fd < 0 || fstat(fd, &previous) < 0 || fstat(command->images_dirfd, &own) < 0)
		return fail_errno(&command->failure, errno, "directory-open", object,
				  "the path is taken from the images directory, not from the current one",
				  "cannot be opened");
	if (previous.st_dev == own.st_dev && previous.st_ino == own.st_ino)
		return fail(&command->failure, EINVAL, "usage", object, "give each dump a directory of its own",
			    "is the images directory itself");
	*ret_dirfd = TAKE_FD(fd);
	return 0;
}

static int make_link(struct command *command, struct tracking *tracking)
{
	const char *path = command->options->prev_images_dir;
	struct stat stat;

	if (!fstatat(command->images_dirfd, link_name, &stat, AT_SYMLINK_NOFOLLOW) && S_ISLNK(stat.st_mode))
		unlinkat(command->images_dirfd, link_name, 0);
	if (symlinkat(path, command->images_dirfd, link_name) < 0)
		return fail_errno(&command->failure, errno, "image-parent", link_name, NULL,
				  "cannot make the link to the previous images");
	tracking->made_link = true;
	return 0;
}

int tracking_link_previous(struct command *command)
{
	struct tracking tracking = {};
	_cleanup_fd_ int dirfd = -1;

	if (!command->options->prev_images_dir)
		return 0;
	int error = open_previous(command, &dirfd);
	return error ? error : make_link(command, &tracking);
}

/* Only the images of the last dump with this tracker have what did not change since. */
static void compare_images(int dirfd, struct dump_options *options)
{
	const char *last = tracker_run_id(options->tracker);
	struct failure failure = {};
	ProtobufCMessage *message;

	if (image_read_one(dirfd, &failure, IMAGE_INVENTORY, 0, &message) < 0) {
		log_warn("the previous images are not complete, so all memory is dumped: %s",
			 failure.cause[0] ? failure.cause : "there is no inventory.img");
		tracker_forget_images(options->tracker);
		return;
	}
	const InventoryEntry *inventory = (const void *)message;
	if (!last || !inventory->dump_criu_run_id || strcmp(inventory->dump_criu_run_id, last)) {
		log_warn("%s, so all memory is dumped",
			 last ? "the previous images are not those of the last dump with --track-mem"
			      : "nothing has followed what the tree wrote since the previous images");
		tracker_forget_images(options->tracker);
	}
	options->parent_has_shared_pages =
		tracker_run_id(options->tracker) && inventory->img_version >= IMAGE_VERSION_SHARED_PAGES;
	image_message_free(message);
}

static int use_previous(struct command *command, struct dump_options *options, struct tracking *tracking)
{
	_cleanup_fd_ int dirfd = -1;
	int error = open_previous(command, &dirfd);

	if (!error)
		error = make_link(command, tracking);
	if (!error)
		compare_images(dirfd, options);
	return error;
}

int tracking_open(struct command *command, struct dump_options *options, struct tracking *ret_tracking)
{
	const struct options *asked = command->options;
	bool must_track = asked->track_mem || options->pre_dump;
	struct failure ignored = {};

	if (keeper_key(options->pid, &ignored, &ret_tracking->key) < 0)
		return 0; /* the dump says what is wrong with the pid */
	if (!must_track && !asked->prev_images_dir)
		return 0;
	int error = tracker_check(&command->failure);
	if (error < 0)
		return error;
	ret_tracking->tracker = options->tracker = tracker_new();
	keeper_take(&ret_tracking->key, options->tracker);
	if (asked->prev_images_dir)
		return use_previous(command, options, ret_tracking);
	tracker_forget_images(options->tracker);
	return 0;
}

static int free_replaced(struct command *command, bool all)
{
	uint64_t bytes;
	char text[32];
	int error = images_dedup(command->images_dirfd, all, &command->failure, &bytes);

	if (!error)
		log_info("%s of older pages are free", bytes_text(bytes, text, sizeof(text)));
	return error;
}

int tracking_close(struct command *command, struct tracking *tracking, int result, bool tree_lives)
{
	bool keep = tree_lives && (command->options->track_mem || command->verb->bit == VERB_PRE_DUMP);

	if (result < 0 && tracking->made_link)
		unlinkat(command->images_dirfd, link_name, 0);
	if (!result && tracking->key.root && tracking->tracker && keep)
		result = keeper_put(&tracking->key, tracking->tracker, &command->failure);
	else if (!result && tracking->key.root && (tracking->tracker || !tree_lives))
		keeper_end(&tracking->key);
	tracker_free(tracking->tracker);
	/* A page server frees what lies there: what lies here is not all that the images need. */
	if (!result && command->options->auto_dedup && tracking->made_link && !command->options->page_server)
		result = free_replaced(command, false);
	return result;
}

int verb_dedup(struct command *command)
{
	int error = free_replaced(command, false);

	if (!error && command->options->json)
		report_event("done", NULL);
	return error;
}
