/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_server.h"

#include "base/fd.h"
#include "cmd/command.h"
#include "cmd/page_options.h"
#include "cmd/tracking.h"
#include "migrate/stream.h"

int verb_page_server(struct command *command)
{
	const struct options *options = command->options;
	_cleanup_page_link_options_ struct page_link_options link = {};
	_cleanup_stream_ struct stream *stream = NULL;
	_cleanup_fd_ int listen_fd = -1;
	uint16_t port = 0;
	int daemon_fd;

	int error = page_link_options_load(command, &link);
	if (!error)
		error = tracking_link_previous(command);
	if (!error)
		error = page_link_listen(&link, &command->failure, &listen_fd, &port);
	if (!error)
		error = daemon_begin(command, &daemon_fd);
	if (error < 0)
		return error;
	server_ready(options, port);
	daemon_ready(daemon_fd);
	error = page_link_accept(&link, listen_fd, &command->failure, &stream);
	if (!error)
		error = page_server_run(stream, command->images_dirfd, &command->failure);
	if (!error && options->auto_dedup && options->prev_images_dir)
		error = verb_dedup(command);
	return error;
}
