/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every field of every message, checked against what it can be at all. One function for each message; the table at the
 * end knows them.
 */
#include "migrate/protocol_check.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "migrate/frames.h"
#include "migrate/preflight.h"

#define PAGE_MASK_BITS ((uint64_t)FRAME_PAGE_BYTES - 1)
#define ADDRESS_END (UINT64_C(1) << 47)
enum { TEXT_BYTES = 512, PATH_BYTES = 4096, MAX_PID = 1 << 22, MAX_MAPPINGS = 1 << 20 };

/*
 * They go into mmap(2) at the destination. MAP_POPULATE would take all memory there with one message, and MAP_SHARED
 * makes of the two sorts of private memory a third that no check asks for.
 */
#define MAPPING_FLAGS (uint32_t)(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_GROWSDOWN | MAP_STACK)

/* The checks return the name of the field that is wrong, or NULL. */
typedef const char *check_function(const void *message);

static bool is_text(const char *text, size_t limit)
{
	return strnlen(text, limit) < limit;
}

static bool is_pid(int32_t pid)
{
	return pid > 0 && pid <= MAX_PID;
}

static bool is_range(uint64_t start, uint64_t bytes)
{
	return !(start & PAGE_MASK_BITS) && bytes && !(bytes & PAGE_MASK_BITS) && start < ADDRESS_END &&
	       bytes <= ADDRESS_END - start;
}

static const char *check_hello(const void *message)
{
	const MigrateHello *hello = message;

	if (hello->version_min > hello->version_max)
		return "version_min";
	if (hello->session_id.len != SESSION_ID_BYTES)
		return "session_id";
	if (hello->session_secret.len != SESSION_SECRET_BYTES)
		return "session_secret";
	if (!hello->connections || hello->connections > MIGRATE_MAX_CONNECTIONS)
		return "connections";
	if (!(hello->codecs & (1u << FRAME_RAW)))
		return "codecs";
	if (hello->page_bytes != FRAME_PAGE_BYTES)
		return "page_bytes";
	if (!is_pid(hello->pid))
		return "pid";
	if (!is_text(hello->criu_version, TEXT_BYTES) || !is_text(hello->host, TEXT_BYTES) ||
	    !is_text(hello->comm, TEXT_BYTES))
		return "a name";
	return NULL;
}

static const char *check_hello_answer(const void *message)
{
	const MigrateHelloAnswer *answer = message;

	if (!answer->connections || answer->connections > MIGRATE_MAX_CONNECTIONS)
		return "connections";
	if (!(answer->codecs & (1u << FRAME_RAW)))
		return "codecs";
	if (!is_text(answer->criu_version, TEXT_BYTES) || !is_text(answer->host, TEXT_BYTES))
		return "a name";
	if (strlen(answer->join_id) > 2 * SESSION_ID_BYTES ||
	    strspn(answer->join_id, "0123456789abcdef") != strlen(answer->join_id))
		return "join_id";
	return NULL;
}

static const char *check_join(const void *message)
{
	const MigrateJoin *join = message;

	if (join->session_id.len != SESSION_ID_BYTES)
		return "session_id";
	if (join->proof.len != SESSION_PROOF_BYTES)
		return "proof";
	if (join->role != CONNECTION_PAGES && join->role != CONNECTION_DEMAND)
		return "role";
	return NULL;
}

static const char *check_file(const MigrateFile *file)
{
	if (file->path[0] != '/' || !is_text(file->path, PATH_BYTES))
		return "file.path";
	if (file->target && !is_text(file->target, PATH_BYTES))
		return "file.target";
	if (file->n_build_id > 16)
		return "file.build_id";
	if (file->size > INT64_MAX)
		return "file.size";
	return NULL;
}

static const char *check_listener(const MigrateListener *listener)
{
	size_t want = listener->family == AF_INET ? 4 : 16;

	if (listener->family == AF_UNIX)
		return listener->address.len && listener->address.len <= 108 ? NULL : "listener.address";
	if (listener->family != AF_INET && listener->family != AF_INET6)
		return "listener.family";
	if (listener->address.len != want)
		return "listener.address";
	return listener->port <= UINT16_MAX ? NULL : "listener.port";
}

static const char *check_texts(char *const *texts, size_t count, const char *field)
{
	for (size_t i = 0; i < count; i++)
		if (!is_text(texts[i], TEXT_BYTES))
			return field;
	return NULL;
}

static const char *check_preflight_request(const void *message)
{
	const PreflightRequest *request = message;
	const char *wrong = NULL;

	if (!is_text(request->kernel_release, TEXT_BYTES) || !is_text(request->cpu->vendor, TEXT_BYTES))
		return "a name";
	if (request->cpu->n_cpuid > 256)
		return "cpu.cpuid";
	for (size_t i = 0; i < request->n_ids && !wrong; i++)
		wrong = is_pid(request->ids[i]) ? NULL : "ids";
	for (size_t i = 0; i < request->n_files && !wrong; i++)
		wrong = check_file(request->files[i]);
	for (size_t i = 0; i < request->n_listeners && !wrong; i++)
		wrong = check_listener(request->listeners[i]);
	for (size_t i = 0; i < request->n_mounts && !wrong; i++)
		if (!is_text(request->mounts[i]->path, PATH_BYTES) || !is_text(request->mounts[i]->type, TEXT_BYTES))
			wrong = "mounts";
	wrong = wrong ?: check_texts(request->skip, request->n_skip, "skip");
	wrong = wrong ?: check_texts(request->features, request->n_features, "features");
	return wrong ?: check_texts(request->moved_addresses, request->n_moved_addresses, "moved_addresses");
}

static const char *check_preflight_answer(const void *message)
{
	const PreflightAnswer *answer = message;

	for (size_t i = 0; i < answer->n_checks; i++) {
		const MigrateCheck *check = answer->checks[i];

		if (check->verdict >= PREFLIGHT_VERDICT_COUNT)
			return "checks.verdict";
		if (!is_text(check->name, TEXT_BYTES) || !is_text(check->code, TEXT_BYTES) ||
		    !is_text(check->object, TEXT_BYTES) || !is_text(check->cause, TEXT_BYTES) ||
		    !is_text(check->hint, TEXT_BYTES))
			return "checks";
	}
	for (size_t i = 0; i < answer->n_files; i++) {
		uint32_t block_bytes = answer->files[i]->block_bytes;

		/* A block is sent in one message. */
		if ((block_bytes && (block_bytes < 512 || block_bytes > IMAGE_CHUNK_BYTES)) ||
		    (!block_bytes && answer->files[i]->n_blocks))
			return "files.block_bytes";
	}
	return NULL;
}

static const char *check_file_data(const void *message)
{
	const FileData *data = message;
	uint64_t bytes = data->has_data ? data->data.len : data->has_copy_bytes ? data->copy_bytes : data->hole_bytes;

	if (data->data.len > IMAGE_CHUNK_BYTES)
		return "data";
	if (data->offset > INT64_MAX || bytes > INT64_MAX - data->offset)
		return "offset";
	if (data->has_copy_bytes && (data->copy_offset > INT64_MAX || bytes > INT64_MAX - data->copy_offset))
		return "copy_offset";
	if (data->last && !data->has_checksum)
		return "checksum";
	return NULL;
}

static const char *check_task(const MigrateTask *task)
{
	uint64_t end = 0;

	if (!is_pid(task->pid) || (task->parent_pid && !is_pid(task->parent_pid)))
		return "task.pid";
	if (!task->space_id)
		return "task.space_id";
	if (task->n_mappings > MAX_MAPPINGS)
		return "task.mappings";
	for (size_t i = 0; i < task->n_mappings; i++) {
		const MigrateMapping *mapping = task->mappings[i];

		if (!is_range(mapping->start, mapping->bytes) || mapping->start < end ||
		    (mapping->flags & ~MAPPING_FLAGS))
			return "task.mappings";
		end = mapping->start + mapping->bytes;
	}
	return NULL;
}

static const char *check_tree(const void *message)
{
	const MigrateTree *tree = message;

	if (!tree->n_tasks)
		return "tasks";
	for (size_t i = 0; i < tree->n_tasks; i++) {
		const char *wrong = check_task(tree->tasks[i]);

		if (wrong)
			return wrong;
	}
	for (size_t i = 0; i < tree->n_shmems; i++)
		if (!is_range(0, tree->shmems[i]->bytes))
			return "shmems.bytes";
	return NULL;
}

static const char *check_image_chunk(const void *message)
{
	const ImageChunk *chunk = message;
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
	size_t length = strnlen(chunk->name, IMAGE_NAME_BYTES);

	/* It becomes the name of a file. */
	if (!length || length >= IMAGE_NAME_BYTES || chunk->name[0] == '.' || strspn(chunk->name, letters) != length)
		return "name";
	if (chunk->data.len > IMAGE_CHUNK_BYTES)
		return "data";
	return chunk->offset <= INT64_MAX - IMAGE_CHUNK_BYTES ? NULL : "offset";
}

static const char *check_commit(const void *message)
{
	return ((const MigrateCommit *)message)->session_id.len == SESSION_ID_BYTES ? NULL : "session_id";
}

static const char *check_running(const void *message)
{
	return is_pid(((const MigrateRunning *)message)->pid) ? NULL : "pid";
}

static const char *check_abort(const void *message)
{
	const MigrateAbort *abort = message;

	if (abort->error <= 0 || abort->error > 4095)
		return "error";
	if (!is_text(abort->code, TEXT_BYTES) || !is_text(abort->object, TEXT_BYTES) ||
	    !is_text(abort->cause, TEXT_BYTES) || !is_text(abort->hint, TEXT_BYTES))
		return "a text";
	return NULL;
}

static const char *check_post_copy_start(const void *message)
{
	const PostCopyStart *start = message;

	return start->connections >= 2 && start->connections <= MIGRATE_MAX_CONNECTIONS + 1 ? NULL : "connections";
}

static const char *check_resume_session(const void *message)
{
	const ResumeSession *resume = message;

	if (resume->session_id.len != SESSION_ID_BYTES)
		return "session_id";
	if (resume->proof.len != SESSION_PROOF_BYTES)
		return "proof";
	return resume->state < MIGRATE_STATE_COUNT ? NULL : "state";
}

static const char *check_session_status(const void *message)
{
	const SessionStatus *status = message;

	switch (status->state) {
	case MIGRATE_READY:
	case MIGRATE_RUNNING:
	case MIGRATE_DONE:
	case MIGRATE_ABORTED:
		return NULL;
	default:
		return "state";
	}
}

/* Messages that are not here have nothing but numbers that mean what they say. */
static check_function *const checks[MESSAGE_TYPE_COUNT] = {
	[MESSAGE_HELLO] = check_hello,
	[MESSAGE_HELLO_ANSWER] = check_hello_answer,
	[MESSAGE_JOIN] = check_join,
	[MESSAGE_PREFLIGHT_REQUEST] = check_preflight_request,
	[MESSAGE_PREFLIGHT_ANSWER] = check_preflight_answer,
	[MESSAGE_FILE_DATA] = check_file_data,
	[MESSAGE_TREE] = check_tree,
	[MESSAGE_IMAGE_CHUNK] = check_image_chunk,
	[MESSAGE_COMMIT] = check_commit,
	[MESSAGE_RUNNING] = check_running,
	[MESSAGE_ABORT] = check_abort,
	[MESSAGE_POST_COPY_START] = check_post_copy_start,
	[MESSAGE_RESUME_SESSION] = check_resume_session,
	[MESSAGE_SESSION_STATUS] = check_session_status,
};

int message_check(const struct message *message, struct failure *failure)
{
	const char *wrong = checks[message->type] ? checks[message->type](message->body) : NULL;

	if (!wrong)
		return 0;
	return fail(failure, EPROTO, "protocol-message", message_name(message->type), NULL,
		    "a message arrived in which %s is wrong", wrong);
}
