/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_protocol.h"

#include "migrate/stream.h"

enum { PAGE_BYTES = 4096 };

#define ADDRESS_SPACE_END 0x7ffffffff000ULL

int page_destination_parse(uint64_t destination, enum page_space *ret_space, uint32_t *ret_id)
{
	uint64_t space = destination & 0xff, id = destination >> 8;

	if ((space != PAGE_SPACE_PROCESS && space != PAGE_SPACE_SHMEM) || id > INT32_MAX)
		return -EINVAL;
	*ret_space = space;
	*ret_id = id;
	return 0;
}

int page_request_check_range(const struct page_request *request, enum page_space space)
{
	uint64_t end = space == PAGE_SPACE_PROCESS ? ADDRESS_SPACE_END : INT64_MAX & ~(uint64_t)(PAGE_BYTES - 1);

	if (request->address % PAGE_BYTES || request->address >= end || !request->pages ||
	    request->pages > (end - request->address) / PAGE_BYTES)
		return -EINVAL;
	return 0;
}

int page_request_send(struct stream *stream, const struct page_request *request)
{
	return stream_write_full(stream, request, sizeof(*request));
}

int page_request_receive(struct stream *stream, struct page_request *ret_request)
{
	return stream_read_full(stream, ret_request, sizeof(*ret_request));
}

int page_protocol_close(struct stream *stream)
{
	const struct page_request request = {.command = PAGE_COMMAND_CLOSE};
	int32_t status = 0;
	int error = page_request_send(stream, &request);

	if (!error)
		error = stream_read_full(stream, &status, sizeof(status));
	return error ? error : status ? -EREMOTEIO : 0;
}
