/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/lazy_supply.h"

#include "base/fd.h"
#include "migrate/page_protocol.h"
#include "migrate/stream.h"

enum {
	PAGE_BYTES = 4096,
	MAX_ANSWER_PAGES = 1024,
	WINDOW = 4, /* on one connection: a fault waits behind them */
};

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

struct lazy_supply {
	struct page_supply supply;
	struct page_chain *chain;
	uint32_t remote; /* the source of pages that the server has */
	struct stream *stream;
	char *answer; /* pages of the server's last answer */
};

static int supply_places(struct page_supply *supply, struct failure *failure, uint32_t id,
			 const struct page_places **ret_places)
{
	struct lazy_supply *own = (struct lazy_supply *)supply;
	int error = page_chain_read(own->chain, IMAGE_PAGEMAP, id, ADDRESS_SPACE_END, ret_places);

	if (error == -ENOENT && !failure_is_set(failure))
		return fail(failure, ENOENT, "image-missing", NULL, "give the --images-dir of the restore",
			    "pagemap-%u.img is missing", id);
	return error;
}

static int read_local(struct lazy_supply *own, struct failure *failure, struct postcopy *postcopy, uint32_t id,
		      const struct page_place *part)
{
	/* Its own buffer: while pages are put into place, a fault may ask for others. */
	_cleanup_free_ char *buffer = xcalloc(part->pages, PAGE_BYTES);
	int fd, error = page_chain_open(own->chain, part->source, &fd);

	if (error < 0)
		return error;
	error = pread_full(fd, buffer, part->pages * PAGE_BYTES, (off_t)(part->first_page * PAGE_BYTES));
	if (error < 0)
		return fail_errno(failure, error, "image-read", NULL, "copy the images again", "cannot read its pages");
	return postcopy_deliver(postcopy, id, part->address, part->pages, buffer);
}

static int supply_request(struct page_supply *supply, struct failure *failure, struct postcopy *postcopy, uint32_t id,
			  uint64_t address, uint64_t pages, bool urgent)
{
	struct lazy_supply *own = (struct lazy_supply *)supply;
	const struct page_request request = {
		.command = PAGE_COMMAND_GET,
		.pages = pages,
		.address = address,
		.destination = page_destination(PAGE_SPACE_PROCESS, id),
	};
	const struct page_places *places;
	struct page_place part;
	int error = supply_places(supply, failure, id, &places);

	if (error < 0)
		return error;
	size_t index = page_places_find(places, address);
	page_places_part(places, &index, address, address + pages * PAGE_BYTES, &part);
	if (part.source != own->remote)
		return read_local(own, failure, postcopy, id, &part);
	if (!own->stream)
		return fail(failure, EINVAL, "page-server", NULL, "give --page-server, --address and --port",
			    "the images are of a lazy dump, whose memory is with its page server");
	error = page_request_send(own->stream, &request);
	return error ? stream_fail(own->stream, error, failure) : 0;
}

static int supply_receive(struct page_supply *supply, struct failure *failure, struct postcopy *postcopy)
{
	struct lazy_supply *own = (struct lazy_supply *)supply;
	struct page_request answer;
	enum page_space space;
	uint32_t id;

	do {
		int error = page_request_receive(own->stream, &answer);
		if (error)
			return stream_fail(own->stream, error, failure);
		if ((answer.command != PAGE_COMMAND_ADD_FLAGS && answer.command != PAGE_COMMAND_ADD) ||
		    page_destination_parse(answer.destination, &space, &id) < 0 || space != PAGE_SPACE_PROCESS ||
		    page_request_check_range(&answer, space) < 0 || answer.pages > MAX_ANSWER_PAGES)
			return fail(failure, EPROTO, "page-protocol", stream_peer(own->stream), NULL,
				    "the answer (command 0x%x, %llu pages at 0x%llx) is none to what was asked",
				    answer.command, (unsigned long long)answer.pages,
				    (unsigned long long)answer.address);
		error = stream_read_full(own->stream, own->answer, answer.pages * PAGE_BYTES);
		if (error)
			return stream_fail(own->stream, error, failure);
		error = postcopy_deliver(postcopy, id, answer.address, answer.pages, own->answer);
		if (error)
			return error;
	} while (stream_pending(own->stream));
	return 0;
}

static int supply_fd(struct page_supply *supply)
{
	const struct lazy_supply *own = (struct lazy_supply *)supply;

	return own->stream ? stream_fd(own->stream) : -1;
}

static const struct page_supply_ops operations = {
	.places = supply_places,
	.request = supply_request,
	.receive = supply_receive,
	.fd = supply_fd,
};

struct page_supply *lazy_supply_new(int images_dirfd, struct stream *stream, struct failure *failure)
{
	struct lazy_supply *own = xcalloc(1, sizeof(*own));

	own->supply.ops = &operations;
	own->supply.window = WINDOW;
	own->stream = stream;
	own->chain = page_chain_new(images_dirfd, failure);
	own->remote = page_chain_allow_lazy(own->chain);
	own->answer = xcalloc(MAX_ANSWER_PAGES, PAGE_BYTES);
	return &own->supply;
}

int lazy_supply_finish(struct page_supply *supply, struct failure *failure)
{
	struct lazy_supply *own = (struct lazy_supply *)supply;
	int error = own->stream ? page_protocol_close(own->stream) : 0;

	return error ? stream_fail(own->stream, error, failure) : 0;
}

void lazy_supply_free(struct page_supply *supply)
{
	struct lazy_supply *own = (struct lazy_supply *)supply;

	page_chain_free(own->chain);
	stream_close(&own->stream);
	free(own->answer);
	free(own);
}
