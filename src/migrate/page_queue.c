/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/page_queue.h"

#include <stdlib.h>

#include "base/fd.h"

void page_queue_init(struct page_queue *queue)
{
	*queue = (struct page_queue){};
	queue->end = &queue->first;
}

void page_queue_put(struct page_queue *queue, const struct queued_piece *piece)
{
	struct queued_piece *copy = xmemdup(piece, sizeof(*piece));

	copy->next = NULL;
	*queue->end = copy;
	queue->end = &copy->next;
	queue->count++;
}

bool page_queue_take(struct page_queue *queue, struct queued_piece *ret_piece)
{
	struct queued_piece *first = queue->first;

	if (!first)
		return false;
	queue->first = first->next;
	if (!queue->first)
		queue->end = &queue->first;
	queue->count--;
	*ret_piece = *first;
	free(first);
	return true;
}
