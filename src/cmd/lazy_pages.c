/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd.h"
#include "cmd/command.h"
#include "cmd/page_options.h"
#include "migrate/lazy_daemon.h"
#include "migrate/lazy_supply.h"
#include "migrate/stream.h"

struct lazy_command {
	const struct options *options;
	int daemon_fd;
};

static void tell_ready(void *context)
{
	const struct lazy_command *own = context;

	server_ready(own->options, 0);
	daemon_ready(own->daemon_fd);
}

int verb_lazy_pages(struct command *command)
{
	const struct options *options = command->options;
	struct lazy_command own = {.options = options};
	const struct lazy_daemon_options daemon = {
		.stop_fd = -1, .work_dirfd = command->work_dirfd, .ready = tell_ready, .context = &own};
	struct stream *stream = NULL;
	_cleanup_page_link_options_ struct page_link_options link = {};

	int error = page_link_options_load(command, &link);
	if (!error && (options->page_server || options->ps_socket >= 0))
		error = page_link_connect(&link, &command->failure, &stream);
	if (!error)
		error = daemon_begin(command, &own.daemon_fd);
	if (error < 0)
		return error;
	struct page_supply *supply = lazy_supply_new(command->images_dirfd, stream, &command->failure);
	error = lazy_daemon_run(&daemon, supply, &command->failure);
	if (!error)
		error = lazy_supply_finish(supply, &command->failure);
	lazy_supply_free(supply);
	return error;
}
