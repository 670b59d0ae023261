/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that is freed all at once: the parts of protobuf messages that live as long as a dump or restore. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct arena {
	struct arena_block *blocks;
};

/* Zeroed memory, aligned for any type, owned by the arena. Never NULL. Not for use by several threads at once. */
void *arena_alloc(struct arena *arena, size_t size);
char *arena_strdup(struct arena *arena, const char *text);
void *arena_memdup(struct arena *arena, const void *data, size_t size);
char *arena_printf(struct arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));
void arena_free(struct arena *arena);

/* A zeroed protobuf-c message of @Type in the arena, initialised by its generated init function. */
#define arena_message(arena, Type, prefix)                              \
	({                                                              \
		Type *new_message = arena_alloc((arena), sizeof(Type)); \
		prefix##__init(new_message);                            \
		new_message;                                            \
	})
