/* SPDX-License-Identifier: Apache-2.0 */
/* Pages through a channel and back: every byte, whatever is lost, damaged or limited on the way. */
#include "unit.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/fd.h"
#include "migrate/bandwidth.h"
#include "migrate/compression.h"
#include "migrate/page_channel.h"
#include "migrate/page_receiver.h"
#include "migrate/stream.h"

enum { PAGES = 2048, SPACE_BYTES = PAGES * FRAME_PAGE_BYTES, MAX_STREAMS = 4 };
#define BASE UINT64_C(0x7f0000000000)

/* What arrives. */
struct arrival {
	uint8_t *memory;
	uint64_t dropped_pages;
	int refuse; /* errno that `place` fails with */
};

static int place(void *context, uint32_t kind, uint32_t id, uint64_t address, uint32_t pages, struct failure *failure,
		 void **ret_memory)
{
	struct arrival *arrival = context;

	if (arrival->refuse)
		return fail(failure, arrival->refuse, "test-refused", "memory", NULL, "refused");
	if (kind != SPACE_PROCESS || id != 41 || address < BASE || address - BASE > SPACE_BYTES ||
	    (uint64_t)pages * FRAME_PAGE_BYTES > SPACE_BYTES - (address - BASE))
		return fail(failure, EPROTO, "frame-address", "memory", NULL, "outside");
	*ret_memory = arrival->memory + (address - BASE);
	return 0;
}

static int zero(void *context, uint32_t kind, uint32_t id, uint64_t address, uint64_t pages, struct failure *failure)
{
	struct arrival *arrival = context;

	memset(arrival->memory + (address - BASE), 0, pages * FRAME_PAGE_BYTES);
	return 0;
}

static int drop(void *context, uint32_t kind, uint32_t id, uint64_t address, uint64_t pages, struct failure *failure)
{
	__atomic_add_fetch(&((struct arrival *)context)->dropped_pages, pages, __ATOMIC_SEQ_CST);
	return 0;
}

static const struct page_receiver_operations operations = {.place = place, .zero = zero, .drop = drop};

struct rig {
	struct stream *source[MAX_STREAMS], *destination[MAX_STREAMS];
	size_t count;
	struct page_channel *channel;
	struct page_receiver *receiver;
	struct arrival arrival;
	uint8_t *pages;
	struct failure failure;
};

static void *map_bytes(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(memory != MAP_FAILED);
	return memory;
}

static void open_rig(struct rig *rig, struct page_channel_options options, size_t count)
{
	*rig = (struct rig){.count = count};
	for (size_t i = 0; i < count; i++) {
		struct stream *pair[2];

		assert_int_equal(stream_pair(pair), 0);
		rig->source[i] = pair[0];
		rig->destination[i] = pair[1];
	}
	rig->pages = map_bytes(SPACE_BYTES);
	rig->arrival.memory = map_bytes(SPACE_BYTES);
	memset(rig->arrival.memory, 0xee, SPACE_BYTES);
	options.streams = rig->source;
	options.stream_count = count;
	options.codecs = 7;
	assert_int_equal(
		page_receiver_new(rig->destination, count, &operations, &rig->arrival, &rig->failure, &rig->receiver),
		0);
	assert_int_equal(page_channel_new(&options, &rig->failure, &rig->channel), 0);
}

static void close_rig(struct rig *rig)
{
	page_channel_free(&rig->channel);
	page_receiver_free(&rig->receiver);
	for (size_t i = 0; i < rig->count; i++) {
		stream_close(&rig->source[i]);
		stream_close(&rig->destination[i]);
	}
	munmap(rig->pages, SPACE_BYTES);
	munmap(rig->arrival.memory, SPACE_BYTES);
}

static uint32_t next_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* Zero pages, text, and noise in runs of any length. */
static void fill(uint8_t *pages, uint32_t seed)
{
	for (size_t page = 0; page < PAGES;) {
		uint32_t kind = next_random(&seed) % 3, run = 1 + next_random(&seed) % 90;

		for (; run && page < PAGES; run--, page++) {
			uint32_t *words = (uint32_t *)(pages + page * FRAME_PAGE_BYTES);

			for (size_t i = 0; i < FRAME_PAGE_BYTES / 4; i++)
				words[i] = kind == 0 ? 0 : kind == 1 ? (uint32_t)(page + i / 64) : next_random(&seed);
		}
	}
}

static void send_all(struct rig *rig)
{
	assert_int_equal(
		page_channel_send(rig->channel, SPACE_PROCESS, 41, BASE, rig->pages, SPACE_BYTES, &rig->failure), 0);
	assert_int_equal(page_channel_barrier(rig->channel, &rig->failure), 0);
}

static void round_trip(enum compress_mode compress, size_t streams)
{
	struct page_channel_statistics statistics;
	struct rig rig;

	open_rig(&rig, (struct page_channel_options){.compress = compress}, streams);
	for (uint32_t round = 1; round <= 3; round++) {
		fill(rig.pages, round * 77);
		send_all(&rig);
		assert_memory_equal(rig.arrival.memory, rig.pages, SPACE_BYTES);
	}
	page_channel_statistics(rig.channel, &statistics);
	assert_int_equal(statistics.pages + statistics.zero_pages, 3 * PAGES);
	assert_true(statistics.zero_pages > 0);
	if (compress == COMPRESS_NONE)
		assert_true(statistics.codec_bytes[FRAME_RAW] == statistics.raw_bytes);
	if (compress == COMPRESS_LZ4)
		assert_true(statistics.codec_bytes[FRAME_LZ4] > 0 && statistics.wire_bytes < statistics.raw_bytes);
	if (compress == COMPRESS_ZSTD)
		assert_true(statistics.codec_bytes[FRAME_ZSTD] > 0 && statistics.wire_bytes < statistics.raw_bytes);
	close_rig(&rig);
}

static void test_every_codec(void **state)
{
	for (enum compress_mode compress = COMPRESS_AUTO; compress <= COMPRESS_ZSTD; compress++) {
		round_trip(compress, 1);
		round_trip(compress, MAX_STREAMS);
	}
}

static void test_drop_and_zero(void **state)
{
	struct rig rig;

	open_rig(&rig, (struct page_channel_options){}, 2);
	assert_int_equal(page_channel_drop(rig.channel, SPACE_PROCESS, 41, BASE, 7, &rig.failure), 0);
	assert_int_equal(page_channel_zero(rig.channel, SPACE_PROCESS, 41, BASE, 3, &rig.failure), 0);
	assert_int_equal(page_channel_barrier(rig.channel, &rig.failure), 0);
	assert_int_equal(rig.arrival.dropped_pages, 7);
	for (size_t i = 0; i < 3 * FRAME_PAGE_BYTES; i++)
		assert_int_equal(rig.arrival.memory[i], 0);
	assert_int_equal(rig.arrival.memory[3 * FRAME_PAGE_BYTES], 0xee);
	close_rig(&rig);
}

static void test_refused_pieces(void **state)
{
	struct page_buffer *buffer;
	struct rig rig;

	open_rig(&rig, (struct page_channel_options){}, 1);
	assert_int_equal(page_channel_buffer(rig.channel, &rig.failure, &buffer), 0);
	assert_int_equal(page_channel_submit(rig.channel, buffer, SPACE_PROCESS, 41, BASE, 100, &rig.failure), -EINVAL);
	failure_clear(&rig.failure);
	assert_int_equal(page_channel_drop(rig.channel, SPACE_PROCESS, 41, BASE, 0, &rig.failure), -EINVAL);
	close_rig(&rig);
}

static void test_receiver_fails(void **state)
{
	struct rig rig;

	open_rig(&rig, (struct page_channel_options){}, 3);
	rig.arrival.refuse = ENOMEM;
	fill(rig.pages, 5);
	page_channel_send(rig.channel, SPACE_PROCESS, 41, BASE, rig.pages, SPACE_BYTES, &rig.failure);
	assert_true(page_channel_barrier(rig.channel, &rig.failure) < 0);
	assert_true(failure_is_set(&rig.failure));
	struct failure failure = {};
	assert_int_equal(page_receiver_join(rig.receiver, &failure), -ENOMEM);
	assert_string_equal(failure.code, "test-refused");
	close_rig(&rig);
}

static void test_link_lost(void **state)
{
	struct rig rig;

	open_rig(&rig, (struct page_channel_options){}, 2);
	fill(rig.pages, 6);
	send_all(&rig);
	stream_shutdown(rig.destination[1]);
	assert_true(page_channel_barrier(rig.channel, &rig.failure) < 0);
	/* "link-ended" or "link-lost": whether reading or writing notices first. */
	assert_memory_equal(rig.failure.code, "link-", strlen("link-"));
	close_rig(&rig);
}

static void *cancel(void *channel)
{
	page_channel_cancel(channel);
	return NULL;
}

/* The receiver's thread never reads: the sender is blocked in the socket, and the producer for a buffer. */
static void test_cancel(void **state)
{
	struct stream *pair[2];
	struct page_channel *channel;
	struct failure failure = {};
	_cleanup_free_ uint8_t *noise = xcalloc(1, FRAME_MAX_BYTES);
	pthread_t thread;
	int r = 0;

	memset(noise, 1, FRAME_MAX_BYTES);
	assert_int_equal(stream_pair(pair), 0);
	const struct page_channel_options options = {.streams = pair, .stream_count = 1};
	assert_int_equal(page_channel_new(&options, &failure, &channel), 0);
	for (int piece = 0; !r && piece < 100; piece++) {
		if (piece == 4)
			assert_int_equal(pthread_create(&thread, NULL, cancel, channel), 0);
		r = page_channel_send(channel, SPACE_PROCESS, 1, BASE, noise, FRAME_MAX_BYTES, &failure);
	}
	assert_int_equal(r, -ECANCELED);
	pthread_join(thread, NULL);
	page_channel_free(&channel);
	stream_close(&pair[0]);
	stream_close(&pair[1]);
}

/* ---- patience ---- */

/* The other side is there and takes nothing: the tree would stand for ever. */
static void test_patience(void **state)
{
	struct stream *pair[2];
	struct page_channel *channel;
	struct failure failure = {};
	_cleanup_free_ uint8_t *noise = xcalloc(1, FRAME_MAX_BYTES);

	memset(noise, 1, FRAME_MAX_BYTES);
	assert_int_equal(stream_pair(pair), 0);
	const struct page_channel_options options = {.streams = pair, .stream_count = 1, .patience_ns = 50000000};
	assert_int_equal(page_channel_new(&options, &failure, &channel), 0);
	assert_int_equal(page_channel_send(channel, SPACE_PROCESS, 1, BASE, noise, FRAME_PAGE_BYTES, &failure), 0);
	assert_int_equal(page_channel_barrier(channel, &failure), -ETIMEDOUT);
	assert_string_equal(failure.code, "link-timeout");
	page_channel_free(&channel);
	stream_close(&pair[0]);
	stream_close(&pair[1]);
}

/* ---- frames ---- */

static void test_damaged_frames(void **state)
{
	static uint8_t pages[2 * FRAME_PAGE_BYTES];
	const struct frame good = {
		.type = FRAME_PAGES,
		.space_kind = SPACE_PROCESS,
		.space_id = 41,
		.address = BASE,
		.pages = 2,
		.payload_bytes = sizeof(pages),
	};
	struct frame frame = good, back;
	uint8_t bytes[FRAME_HEADER_BYTES];
	struct failure failure = {};

	frame_encode(&good, bytes);
	assert_int_equal(frame_decode(bytes, &failure, &back), 0);
	assert_int_equal(back.pages, 2);
	assert_true(back.address == BASE);
#define REFUSED(change)                                                          \
	do {                                                                     \
		frame = good;                                                    \
		change;                                                          \
		frame_encode(&frame, bytes);                                     \
		failure_clear(&failure);                                         \
		assert_int_equal(frame_decode(bytes, &failure, &back), -EPROTO); \
	} while (0)
	REFUSED(frame.type = 0);
	REFUSED(frame.type = FRAME_TYPE_COUNT);
	REFUSED(frame.codec = FRAME_CODEC_COUNT);
	REFUSED(frame.codec = FRAME_LZ4); /* as long as the pages */
	REFUSED(frame.space_kind = 3);
	REFUSED(frame.pages = 0);
	REFUSED(frame.pages = 3);
	REFUSED(frame.pages = 0x80000002);
	REFUSED(frame.payload_bytes = 0);
	REFUSED(frame.payload_bytes = FRAME_MAX_BYTES + FRAME_PAGE_BYTES; frame.pages = FRAME_MAX_PAGES + 1);
	REFUSED(frame.address = BASE + 1);
	REFUSED(frame.address = UINT64_MAX - 4095);
	REFUSED(frame.address = (UINT64_C(1) << 47) - 4096);
	REFUSED(frame.type = FRAME_ZERO);
	REFUSED(frame.type = FRAME_BARRIER);
	failure_clear(&failure);
	frame = good;
	frame.checksum = 1;
	assert_int_equal(frame_unpack(&frame, pages, pages, &failure), -EBADMSG);
	assert_string_equal(failure.code, "frame-checksum");
}

/* ---- the choice of the codec ---- */

/* A machine: one thread packs at these costs, the link moves this many bytes in a ns for all. Returns the choice. */
static enum frame_codec settle(double lz4_ns, double zstd_ns, double lz4_ratio, double zstd_ratio, double link_ns,
			       unsigned threads, uint32_t allowed)
{
	struct compression_model model = {.threads = threads};
	enum frame_codec codec = FRAME_RAW;
	unsigned chosen[FRAME_CODEC_COUNT] = {};

	compression_learn_codec(&model, FRAME_LZ4, 1000000, (uint64_t)(1000000 * lz4_ratio), (uint64_t)(1e6 * lz4_ns));
	compression_learn_codec(&model, FRAME_ZSTD, 1000000, (uint64_t)(1000000 * zstd_ratio),
				(uint64_t)(1e6 * zstd_ns));
	for (int window = 0; window < 200; window++) {
		const double cost[] = {0.1, lz4_ns, zstd_ns}, ratio[] = {1, lz4_ratio, zstd_ratio};
		double link = link_ns * ratio[codec], work = cost[codec] / threads;
		double slower = link > work ? link : work;
		double raw_bytes = 50e6 / slower;

		compression_learn_link(&model, (uint64_t)(raw_bytes * ratio[codec]), 50000000,
				       (uint64_t)((slower - work) * raw_bytes * threads));
		codec = compression_choose(&model, allowed);
		if (window >= 100)
			chosen[codec]++;
	}
	return chosen[FRAME_RAW] > 75    ? FRAME_RAW
	       : chosen[FRAME_LZ4] > 75  ? FRAME_LZ4
	       : chosen[FRAME_ZSTD] > 75 ? FRAME_ZSTD
					 : FRAME_CODEC_COUNT;
}

static void test_choice(void **state)
{
	/* 10 GByte/s: nothing is gained by any compression. */
	assert_int_equal(settle(1.5, 5, 0.5, 0.4, 0.1, 4, 7), FRAME_RAW);
	/* 1 Gbit/s, and four threads. */
	assert_int_equal(settle(1.5, 5, 0.5, 0.4, 8, 4, 7), FRAME_ZSTD);
	/* 1 Gbit/s, one thread with a slow zstd. */
	assert_int_equal(settle(1.5, 9, 0.5, 0.4, 8, 1, 7), FRAME_LZ4);
	/* 10 MByte/s. */
	assert_int_equal(settle(1.5, 5, 0.5, 0.3, 100, 1, 7), FRAME_ZSTD);
	/* Noise. */
	assert_int_equal(settle(0.3, 1, 1, 1, 100, 1, 7), FRAME_RAW);
	/* Only what the other side can read. */
	assert_int_equal(settle(1.5, 5, 0.5, 0.3, 100, 1, 1 | 1 << FRAME_LZ4), FRAME_LZ4);
	assert_int_equal(settle(1.5, 5, 0.5, 0.3, 100, 1, 1), FRAME_RAW);
}

static void test_incompressible(void **state)
{
	struct compressor *compressor = compressor_new();
	_cleanup_free_ uint32_t *noise = xcalloc(1, FRAME_MAX_BYTES);
	_cleanup_free_ uint8_t *out = xcalloc(1, FRAME_MAX_BYTES);
	uint32_t seed = 3;

	assert_true(compressor_worthwhile(compressor, noise, FRAME_MAX_BYTES, out));
	assert_true(compressor_pack(compressor, FRAME_ZSTD, noise, FRAME_MAX_BYTES, out) > 0);
	for (size_t i = 0; i < FRAME_MAX_BYTES / 4; i++)
		noise[i] = next_random(&seed);
	assert_false(compressor_worthwhile(compressor, noise, FRAME_MAX_BYTES, out));
	assert_int_equal(compressor_pack(compressor, FRAME_LZ4, noise, FRAME_MAX_BYTES, out), 0);
	assert_int_equal(compressor_pack(compressor, FRAME_ZSTD, noise, FRAME_MAX_BYTES, out), 0);
	compressor_free(&compressor);
}

/* ---- bandwidth ---- */

static void test_bandwidth(void **state)
{
	struct bandwidth bandwidth;
	uint64_t now_ns = 1000, start_ns = now_ns, sent = 0;

	bandwidth_init(&bandwidth, 10 << 20, now_ns);
	while (sent < 50 << 20) {
		now_ns += bandwidth_take(&bandwidth, 1 << 20, now_ns);
		sent += 1 << 20;
	}
	/* 50 MiB at 10 MiB/s, of which 1 MiB may go at once. */
	assert_true(now_ns - start_ns > UINT64_C(4850000000) && now_ns - start_ns < UINT64_C(5000000000));
	/* A pause does not pile up more than the burst. */
	now_ns += UINT64_C(3600000000000);
	assert_int_equal(bandwidth_take(&bandwidth, 1 << 20, now_ns), 0);
	assert_true(bandwidth_take(&bandwidth, 1 << 20, now_ns) > 90000000);
	bandwidth_set(&bandwidth, 0, now_ns);
	assert_int_equal(bandwidth_take(&bandwidth, UINT64_C(1) << 40, now_ns), 0);
}

/* The lower bound is the point: nothing may be sent faster than allowed, however slow the machine. */
static void test_limited_channel(void **state)
{
	struct timespec start, end;
	struct rig rig;

	open_rig(&rig, (struct page_channel_options){.compress = COMPRESS_NONE, .bytes_per_second = 16 << 20}, 2);
	memset(rig.pages, 1, SPACE_BYTES);
	clock_gettime(CLOCK_MONOTONIC, &start);
	send_all(&rig);
	clock_gettime(CLOCK_MONOTONIC, &end);
	double took = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
	assert_true(took > (SPACE_BYTES - (4 << 20)) / (16.0 * (1 << 20)) * 0.9);
	close_rig(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_codec),    cmocka_unit_test(test_drop_and_zero),
		cmocka_unit_test(test_refused_pieces), cmocka_unit_test(test_receiver_fails),
		cmocka_unit_test(test_link_lost),      cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_patience),       cmocka_unit_test(test_damaged_frames),
		cmocka_unit_test(test_choice),         cmocka_unit_test(test_incompressible),
		cmocka_unit_test(test_bandwidth),      cmocka_unit_test(test_limited_channel),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
