/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel opens a TCP connection to its administrator through TCP_REPAIR. In that mode a socket transmits nothing
 * by itself, its send queue can be read and filled, sequence numbers can be set while it is closed, and connect()
 * makes it established without a handshake.
 *
 * What the image says: inq_seq and outq_seq are the sequence numbers behind the last byte of each queue, a FIN counts
 * as one; inq_len and outq_len count bytes of data only.
 *
 * What repair mode does not do:
 * - Take a FIN of the peer. A segment with it is delivered through the loopback device (tcp_packet.c).
 * - Keep bytes unsent: what is written to the send queue counts as sent. So the bytes that were never sent are
 *   written when the mode is off again, like the program would have done.
 * - Survive a program: a write in repair mode fails. So at dump it is on for microseconds, one socket at a time.
 * - Keep SO_REUSEADDR: switching it off clears the flag.
 */
#include "kinds/fd/tcp_stream.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "image/image.h"
#include "kinds/fd/tcp_packet.h"

/* Values of TCP_REPAIR_QUEUE */
enum repair_queue { QUEUE_NONE, QUEUE_RECEIVE, QUEUE_SEND };

/* Kinds of TCP options, for TCP_REPAIR_OPTIONS */
enum tcp_option { OPTION_MSS = 2, OPTION_WINDOW_SCALE = 3, OPTION_SACK_PERMITTED = 4, OPTION_TIMESTAMP = 8 };

#define WINDOW_SCALE_MAX 14
#define QUEUE_MAX (1u << 30)     /* bytes; the kernel's own limits are far below */
#define QUEUE_SLACK (256u << 10) /* bytes that are acknowledged already may stand at the head of a send queue */
#define QUEUE_CHUNK (64u << 10)  /* bytes of one write to a queue */
#define QUEUE_CHUNK_MIN (2u << 10)
#define DELIVERY_TIMEOUT_MS 2000
#define READ_TRIES 1000 /* packets that were on the way inside this host arrive within microseconds */

bool tcp_state_is_connected(enum tcp_state state)
{
	return state == TCP_STATE_ESTABLISHED || tcp_state_has_peer_fin(state) || tcp_state_has_own_fin(state);
}

bool tcp_state_has_peer_fin(enum tcp_state state)
{
	return state == TCP_STATE_CLOSE_WAIT || state == TCP_STATE_LAST_ACK || state == TCP_STATE_CLOSING;
}

bool tcp_state_has_own_fin(enum tcp_state state)
{
	return state == TCP_STATE_FIN_WAIT1 || state == TCP_STATE_FIN_WAIT2 || state == TCP_STATE_LAST_ACK ||
	       state == TCP_STATE_CLOSING;
}

/* The FIN of this end is in the send queue still. */
static bool has_unacknowledged_fin(enum tcp_state state)
{
	return tcp_state_has_own_fin(state) && state != TCP_STATE_FIN_WAIT2;
}

struct tcp_stream *tcp_stream_new(void)
{
	struct tcp_stream *stream = xcalloc(1, sizeof(*stream));

	tcp_stream_entry__init(&stream->entry);
	return stream;
}

void tcp_stream_free(struct tcp_stream *stream)
{
	if (!stream)
		return;
	free(stream->in);
	free(stream->out);
	free(stream);
}

static int set_tcp(int fd, int option, int value)
{
	return setsockopt(fd, IPPROTO_TCP, option, &value, sizeof(value)) ? -errno : 0;
}

static int get_tcp(int fd, int option, uint32_t *ret_value)
{
	uint32_t value = 0;
	socklen_t size = sizeof(value);

	if (getsockopt(fd, IPPROTO_TCP, option, &value, &size))
		return -errno;
	*ret_value = value;
	return 0;
}

static int get_info(int fd, struct tcp_info *info)
{
	socklen_t size = sizeof(*info);

	memset(info, 0, sizeof(*info));
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) ? -errno : 0;
}

int tcp_state_read(int fd, enum tcp_state *ret_state)
{
	struct tcp_info info;
	int ret = get_info(fd, &info);

	if (!ret)
		*ret_state = info.tcpi_state;
	return ret;
}

int tcp_repair_begin(int fd, int *ret_reuse)
{
	int reuse = 0;
	socklen_t size = sizeof(reuse);

	if (getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, &size))
		return -errno;
	*ret_reuse = reuse;
	return set_tcp(fd, TCP_REPAIR, TCP_REPAIR_ON);
}

int tcp_repair_end(int fd, int reuse)
{
	int ret = set_tcp(fd, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP);

	if (!ret && reuse && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse)))
		ret = -errno;
	return ret;
}

static int fail_read(struct failure *failure, int error, const char *what)
{
	const char *hint = error == -EPERM ? "criu needs CAP_NET_ADMIN in the network namespace of the program" : NULL;

	return fail_errno(failure, error, "tcp-read", NULL, hint, "cannot read the connection's %s", what);
}

/* Repair mode around one reading function, which returns 0 or a failure. */
static int read_in_repair(struct failure *failure, int fd, struct tcp_stream *stream,
			  int (*read_part)(struct failure *failure, int fd, struct tcp_stream *stream))
{
	int reuse, ret, end;

	ret = tcp_repair_begin(fd, &reuse);
	if (ret)
		return fail_read(failure, ret, "queues (TCP_REPAIR)");
	ret = read_part(failure, fd, stream);
	end = tcp_repair_end(fd, reuse);
	if (!ret && end)
		ret = fail_read(failure, end, "repair mode (to switch it off)");
	return ret;
}

/*
 * A buffer for @length bytes of a queue, in memory already: repair mode is on while the send queue is copied. NULL for
 * an empty queue.
 */
static int queue_buffer(struct failure *failure, uint32_t length, uint8_t **ret_data)
{
	size_t size = (size_t)length + QUEUE_SLACK;

	free(*ret_data);
	*ret_data = NULL;
	if (!length)
		return 0;
	*ret_data = malloc(size);
	if (!*ret_data)
		return fail(failure, ENOMEM, "tcp-read", NULL, NULL, "no memory for %u queued bytes", length);
	memset(*ret_data, 0, size);
	return 0;
}

/* The bytes at the end of a queue: @length of them, without taking any away. @data is of queue_buffer(). */
static int peek_queue(struct failure *failure, int fd, uint32_t length, uint8_t *data)
{
	const int from_start = -1;
	int offset = -1;
	socklen_t size = sizeof(offset);

	if (!length)
		return 0;
	/* The program may have told the kernel where its next peek begins. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, &size) == 0 && offset >= 0)
		setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &from_start, sizeof(from_start));
	ssize_t count = recv(fd, data, (size_t)length + QUEUE_SLACK, MSG_PEEK | MSG_DONTWAIT);
	int error = count < 0 ? errno : ENODATA;
	if (offset >= 0)
		setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset));
	if (count < length)
		return fail_errno(failure, error, "tcp-read", NULL, NULL,
				  "a queue gives %zd bytes where %u are expected", count, length);
	memmove(data, data + (count - length), length);
	return 0;
}

static int queue_length(int fd, unsigned long request, uint32_t *ret_length)
{
	int length = 0;

	if (ioctl(fd, request, &length))
		return -errno;
	if (length < 0 || (unsigned int)length > QUEUE_MAX)
		return -EOVERFLOW;
	*ret_length = (uint32_t)length;
	return 0;
}

static int read_send_part(struct failure *failure, int fd, struct tcp_stream *stream)
{
	TcpStreamEntry *entry = &stream->entry;
	uint32_t length, unsent;
	int ret;

	ret = queue_length(fd, SIOCOUTQ, &length);
	if (!ret && length != stream->queued)
		return 0; /* acknowledged meanwhile: the caller sees it and looks again */
	if (!ret)
		ret = queue_length(fd, SIOCOUTQNSD, &unsent);
	if (!ret)
		ret = set_tcp(fd, TCP_REPAIR_QUEUE, QUEUE_SEND);
	if (!ret)
		ret = get_tcp(fd, TCP_QUEUE_SEQ, &entry->outq_seq);
	if (ret)
		return fail_read(failure, ret, "send queue");
	if (has_unacknowledged_fin(stream->state))
		unsent -= unsent > 0;
	entry->has_unsq_len = true;
	entry->unsq_len = unsent < entry->outq_len ? unsent : entry->outq_len;
	ret = peek_queue(failure, fd, entry->outq_len, stream->out);
	set_tcp(fd, TCP_REPAIR_QUEUE, QUEUE_NONE);
	return ret;
}

static int read_window(int fd, TcpStreamEntry *entry)
{
	struct tcp_repair_window window = {0};
	socklen_t size = sizeof(window);

	if (getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &size))
		return -errno;
	entry->has_snd_wl1 = entry->has_snd_wnd = entry->has_max_window = true;
	entry->has_rcv_wnd = entry->has_rcv_wup = true;
	entry->snd_wl1 = window.snd_wl1;
	entry->snd_wnd = window.snd_wnd;
	entry->max_window = window.max_window;
	entry->rcv_wnd = window.rcv_wnd;
	entry->rcv_wup = window.rcv_wup;
	return 0;
}

/* What both ends agreed on when they connected. */
static int read_negotiated(int fd, struct tcp_stream *stream)
{
	TcpStreamEntry *entry = &stream->entry;
	struct tcp_info info;
	int ret = get_info(fd, &info);

	if (ret)
		return ret;
	stream->bytes_received = info.tcpi_bytes_received;
	stream->bytes_acked = info.tcpi_bytes_acked;
	entry->opt_mask = info.tcpi_options & (TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE);
	if (info.tcpi_options & TCPI_OPT_WSCALE) {
		entry->snd_wscale = info.tcpi_snd_wscale;
		entry->has_rcv_wscale = true;
		entry->rcv_wscale = info.tcpi_rcv_wscale;
	}
	if (info.tcpi_options & TCPI_OPT_TIMESTAMPS) {
		ret = get_tcp(fd, TCP_TIMESTAMP, &entry->timestamp);
		entry->has_timestamp = true;
	}
	/* In repair mode this is what the peer allows, not what fits at present. */
	return ret ? ret : get_tcp(fd, TCP_MAXSEG, &entry->mss_clamp);
}

static int read_receive_part(struct failure *failure, int fd, struct tcp_stream *stream)
{
	TcpStreamEntry *entry = &stream->entry;
	enum tcp_state state;
	int ret;

	ret = read_negotiated(fd, stream);
	if (!ret)
		ret = set_tcp(fd, TCP_REPAIR_QUEUE, QUEUE_RECEIVE);
	if (!ret)
		ret = get_tcp(fd, TCP_QUEUE_SEQ, &entry->inq_seq);
	if (!ret)
		ret = read_window(fd, entry);
	if (!ret)
		ret = tcp_state_read(fd, &state);
	if (ret)
		return fail_read(failure, ret, "receive queue");
	/* Only the receiving half of the state may have changed since the sending side was read. */
	if (!tcp_state_has_own_fin(state) || tcp_state_has_peer_fin(state))
		stream->state = state;
	set_tcp(fd, TCP_REPAIR_QUEUE, QUEUE_NONE);
	return 0;
}

/* Does the queue still hold as much as it did before it was read? */
static bool is_queue_unchanged(int fd, unsigned long request, uint32_t length)
{
	uint32_t now;

	return !queue_length(fd, request, &now) && now == length;
}

/* What needs no repair mode is done before it: lengths, memory. */
static int read_send_once(struct failure *failure, int fd, struct tcp_stream *stream)
{
	int ret = tcp_state_read(fd, &stream->state);

	if (!ret)
		ret = queue_length(fd, SIOCOUTQ, &stream->queued);
	if (ret)
		return fail_read(failure, ret, "send queue");
	stream->entry.outq_len = stream->queued - (has_unacknowledged_fin(stream->state) && stream->queued);
	ret = queue_buffer(failure, stream->entry.outq_len, &stream->out);
	return ret ? ret : read_in_repair(failure, fd, stream, read_send_part);
}

int tcp_stream_read_send(struct failure *failure, int fd, struct tcp_stream *stream)
{
	for (int tries = 0; tries < READ_TRIES; tries++) {
		int ret = read_send_once(failure, fd, stream);

		if (ret || is_queue_unchanged(fd, SIOCOUTQ, stream->queued))
			return ret;
	}
	return fail_read(failure, -EAGAIN, "send queue, which does not come to rest");
}

/* Unread bytes can be looked at without repair mode. */
static int read_unread(struct failure *failure, int fd, struct tcp_stream *stream)
{
	int ret = queue_length(fd, SIOCINQ, &stream->entry.inq_len);

	if (ret)
		return fail_read(failure, ret, "receive queue");
	ret = queue_buffer(failure, stream->entry.inq_len, &stream->in);
	return ret ? ret : peek_queue(failure, fd, stream->entry.inq_len, stream->in);
}

int tcp_stream_read_receive(struct failure *failure, int fd, struct tcp_stream *stream)
{
	for (int tries = 0; tries < READ_TRIES; tries++) {
		int ret = read_unread(failure, fd, stream);

		if (!ret)
			ret = read_in_repair(failure, fd, stream, read_receive_part);
		if (ret || is_queue_unchanged(fd, SIOCINQ, stream->entry.inq_len))
			return ret;
	}
	return fail_read(failure, -EAGAIN, "receive queue, which does not come to rest");
}

/* The sequence number behind the last byte that the peer sent; its FIN comes later. */
static uint32_t data_end_received(const struct tcp_stream *stream)
{
	return stream->entry.inq_seq - (tcp_state_has_peer_fin(stream->state) ? 1 : 0);
}

static uint32_t data_end_sent(const struct tcp_stream *stream)
{
	return stream->entry.outq_seq - (tcp_state_has_own_fin(stream->state) ? 1 : 0);
}

void tcp_stream_count_sent(struct tcp_stream *sender, const struct tcp_stream *receiver)
{
	uint32_t not_received = data_end_sent(sender) - data_end_received(receiver);

	/* More than was unsent: some of it is on the way, or was lost; the sender repeats it. */
	if (not_received < sender->entry.unsq_len)
		sender->entry.unsq_len = not_received;
}

int tcp_stream_read_ended(struct failure *failure, int fd, struct tcp_stream *stream)
{
	stream->state = TCP_STATE_CLOSE;
	return read_unread(failure, fd, stream);
}

bool tcp_stream_is_stale(int fd, const struct tcp_stream *stream)
{
	struct tcp_info info;

	if (get_info(fd, &info))
		return true;
	return info.tcpi_bytes_received != stream->bytes_received || info.tcpi_bytes_acked != stream->bytes_acked ||
	       info.tcpi_state != stream->state;
}

int tcp_stream_write(int images_dirfd, struct failure *failure, uint32_t inode, const struct tcp_stream *stream)
{
	struct image *image;
	int ret = image_create(images_dirfd, failure, IMAGE_TCP_STREAM, inode, &image);

	if (ret)
		return ret;
	image_write(image, &stream->entry.base);
	image_write_raw(image, stream->in, stream->entry.inq_len);
	image_write_raw(image, stream->out, stream->entry.outq_len);
	return image_close(&image);
}

static int check_entry(struct failure *failure, const TcpStreamEntry *entry)
{
	const char *wrong = NULL;

	if (entry->inq_len > QUEUE_MAX || entry->outq_len > QUEUE_MAX)
		wrong = "a queue's length";
	else if (entry->unsq_len > entry->outq_len)
		wrong = "unsq_len";
	else if (entry->opt_mask & ~(TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE | TCPI_OPT_ECN |
				     TCPI_OPT_ECN_SEEN | TCPI_OPT_SYN_DATA))
		wrong = "opt_mask";
	else if (entry->snd_wscale > WINDOW_SCALE_MAX || entry->rcv_wscale > WINDOW_SCALE_MAX)
		wrong = "a window scale";
	else if (entry->mss_clamp > UINT16_MAX)
		wrong = "mss_clamp";
	if (wrong)
		return fail(failure, EINVAL, "image-tcp-stream", NULL, NULL, "%s is out of range", wrong);
	return 0;
}

static int load_queue(struct failure *failure, struct image *image, uint32_t length, uint8_t **ret_data)
{
	if (!length)
		return 0;
	*ret_data = malloc(length);
	if (!*ret_data)
		return fail(failure, ENOMEM, "image-tcp-stream", NULL, NULL, "no memory for %u bytes", length);
	return image_read_raw(image, *ret_data, length);
}

static int load_image(struct failure *failure, struct image *image, struct tcp_stream *stream)
{
	ProtobufCMessage *message = NULL;
	int ret = image_read(image, &message);

	if (ret < 0)
		return ret;
	if (!ret)
		return fail(failure, EINVAL, "image-tcp-stream", NULL, NULL, "the image is empty");
	stream->entry = *(TcpStreamEntry *)message; /* it has numbers only */
	stream->entry.base.n_unknown_fields = 0;
	stream->entry.base.unknown_fields = NULL;
	image_message_free(message);
	ret = check_entry(failure, &stream->entry);
	if (!ret)
		ret = load_queue(failure, image, stream->entry.inq_len, &stream->in);
	if (!ret)
		ret = load_queue(failure, image, stream->entry.outq_len, &stream->out);
	return ret;
}

int tcp_stream_load(int images_dirfd, struct failure *failure, uint32_t inode, enum tcp_state state,
		    struct tcp_stream **ret_stream)
{
	struct tcp_stream *stream;
	struct image *image;
	char name[64];
	int ret;

	image_name(IMAGE_TCP_STREAM, inode, name, sizeof(name));
	ret = image_open(images_dirfd, failure, IMAGE_TCP_STREAM, inode, &image);
	if (ret == -ENOENT && !failure_is_set(failure))
		return fail(failure, ENOENT, "image-missing", name, NULL, "the image of a connection is missing");
	if (ret)
		return ret;
	stream = tcp_stream_new();
	stream->state = state;
	ret = load_image(failure, image, stream);
	image_close(&image);
	if (ret) {
		tcp_stream_free(stream);
		return fail_in(failure, "%s", name);
	}
	*ret_stream = stream;
	return 0;
}

static int set_sequence(int fd, enum repair_queue queue, uint32_t sequence)
{
	int ret = set_tcp(fd, TCP_REPAIR_QUEUE, queue);

	return ret ? ret : set_tcp(fd, TCP_QUEUE_SEQ, (int)sequence);
}

int tcp_stream_attach(int fd, const struct tcp_stream *stream, const void *remote, size_t remote_size)
{
	const TcpStreamEntry *entry = &stream->entry;
	int ret;

	ret = set_sequence(fd, QUEUE_RECEIVE, data_end_received(stream) - entry->inq_len);
	if (!ret)
		ret = set_sequence(fd, QUEUE_SEND, data_end_sent(stream) - entry->outq_len);
	if (!ret)
		ret = set_tcp(fd, TCP_REPAIR_QUEUE, QUEUE_NONE);
	if (!ret && connect(fd, remote, remote_size))
		ret = -errno;
	return ret;
}

static int set_negotiated(int fd, const TcpStreamEntry *entry)
{
	struct tcp_repair_opt options[4];
	size_t count = 0;

	if (entry->opt_mask & TCPI_OPT_SACK)
		options[count++] = (struct tcp_repair_opt){OPTION_SACK_PERMITTED, 0};
	if (entry->opt_mask & TCPI_OPT_WSCALE)
		options[count++] =
			(struct tcp_repair_opt){OPTION_WINDOW_SCALE, entry->snd_wscale | entry->rcv_wscale << 16};
	if (entry->opt_mask & TCPI_OPT_TIMESTAMPS)
		options[count++] = (struct tcp_repair_opt){OPTION_TIMESTAMP, 0};
	options[count++] = (struct tcp_repair_opt){OPTION_MSS, entry->mss_clamp};
	if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options, count * sizeof(options[0])))
		return -errno;
	if (entry->opt_mask & TCPI_OPT_TIMESTAMPS)
		return set_tcp(fd, TCP_TIMESTAMP, (int)entry->timestamp);
	return 0;
}

/* Room for a whole queue; the program's own sizes are set when the socket is complete. */
static int make_room(int fd, int option, uint32_t length)
{
	int size = (int)(length + length / 2 + (1u << 20));

	if (!length)
		return 0;
	return setsockopt(fd, SOL_SOCKET, option, &size, sizeof(size)) ? -errno : 0;
}

/* Memory may be short of large pieces, so they get smaller before this gives up. */
static int write_queue(int fd, const uint8_t *data, uint32_t length)
{
	uint32_t chunk = QUEUE_CHUNK;

	while (length) {
		ssize_t count = send(fd, data, length < chunk ? length : chunk, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (count <= 0) {
			if (count < 0 && errno == ENOMEM && chunk > QUEUE_CHUNK_MIN) {
				chunk /= 2;
				continue;
			}
			return count ? -errno : -EIO;
		}
		data += count;
		length -= (uint32_t)count;
	}
	return 0;
}

static int fill_queue(int fd, enum repair_queue queue, const uint8_t *data, uint32_t length)
{
	int ret = set_tcp(fd, TCP_REPAIR_QUEUE, queue);

	return ret ? ret : write_queue(fd, data, length);
}

static int set_window(int fd, const TcpStreamEntry *entry)
{
	struct tcp_repair_window window = {
		.snd_wl1 = entry->snd_wl1,
		.snd_wnd = entry->snd_wnd,
		.max_window = entry->max_window,
		.rcv_wnd = entry->rcv_wnd,
		.rcv_wup = entry->rcv_wup,
	};

	if (!entry->has_snd_wnd || !entry->has_rcv_wnd)
		return 0;
	return setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof(window)) ? -errno : 0;
}

/* The event that the kernel gives for a state: the peer's FIN wakes whoever polls, an acknowledgment does not. */
static int wait_for_state(int fd, enum tcp_state state)
{
	for (int waited_ms = 0; waited_ms < DELIVERY_TIMEOUT_MS; waited_ms++) {
		struct pollfd event = {.fd = fd, .events = tcp_state_has_peer_fin(state) ? POLLRDHUP : 0};
		enum tcp_state now;
		int ret = tcp_state_read(fd, &now);

		if (ret)
			return ret;
		if (now == state)
			return 0;
		poll(&event, 1, 1);
	}
	return -ETIMEDOUT;
}

static int deliver(int fd, const struct tcp_stream *stream, const struct connection *connection, bool fin,
		   uint32_t acknowledgment, enum tcp_state state)
{
	uint32_t window = stream->entry.snd_wnd >> stream->entry.snd_wscale;
	struct tcp_packet packet = {
		.sequence = data_end_received(stream),
		.acknowledgment = acknowledgment,
		.window = (uint16_t)(window < UINT16_MAX ? window : UINT16_MAX),
		.fin = fin,
	};
	int ret = tcp_packet_deliver(connection, &packet);

	return ret ? ret : wait_for_state(fd, state);
}

static bool has_unsent(const struct tcp_stream *stream)
{
	return stream->entry.unsq_len > 0;
}

/* Walks the socket from established to the state of the image, as the kernel does it for packets. */
static int restore_state(int fd, const struct tcp_stream *stream, const struct connection *connection)
{
	uint32_t unacknowledged = data_end_sent(stream) - stream->entry.outq_len;
	enum tcp_state state = stream->state;
	int ret = 0;

	if (state == TCP_STATE_CLOSE_WAIT || state == TCP_STATE_LAST_ACK)
		ret = deliver(fd, stream, connection, true, unacknowledged, TCP_STATE_CLOSE_WAIT);
	/* Behind bytes that were never sent, the own FIN follows in tcp_stream_start(). */
	if (!ret && tcp_state_has_own_fin(state) && !has_unsent(stream)) {
		ret = set_tcp(fd, TCP_REPAIR_QUEUE, QUEUE_SEND);
		if (!ret && shutdown(fd, SHUT_WR))
			ret = -errno;
	}
	if (!ret && state == TCP_STATE_FIN_WAIT2)
		ret = deliver(fd, stream, connection, false, stream->entry.outq_seq, TCP_STATE_FIN_WAIT2);
	if (!ret && state == TCP_STATE_CLOSING && !has_unsent(stream))
		ret = deliver(fd, stream, connection, true, unacknowledged, TCP_STATE_CLOSING);
	else if (!ret && state == TCP_STATE_CLOSING)
		ret = deliver(fd, stream, connection, true, unacknowledged, TCP_STATE_CLOSE_WAIT);
	return ret;
}

static int fail_fill(struct failure *failure, int error, const char *what)
{
	return fail_errno(failure, error, "tcp-restore", NULL, NULL, "cannot give the connection its %s", what);
}

int tcp_stream_fill(struct failure *failure, int fd, const struct tcp_stream *stream,
		    const struct connection *connection)
{
	const TcpStreamEntry *entry = &stream->entry;
	int ret;

	ret = set_negotiated(fd, entry);
	if (ret)
		return fail_fill(failure, ret, "negotiated options");
	ret = make_room(fd, SO_RCVBUFFORCE, entry->inq_len);
	if (!ret)
		ret = make_room(fd, SO_SNDBUFFORCE, entry->outq_len);
	if (!ret)
		ret = fill_queue(fd, QUEUE_RECEIVE, stream->in, entry->inq_len);
	if (ret)
		return fail_fill(failure, ret, "unread bytes");
	ret = fill_queue(fd, QUEUE_SEND, stream->out, entry->outq_len - entry->unsq_len);
	if (ret)
		return fail_fill(failure, ret, "unacknowledged bytes");
	ret = restore_state(fd, stream, connection);
	if (ret)
		return fail_fill(failure, ret, "half-closed state");
	ret = set_tcp(fd, TCP_REPAIR_QUEUE, QUEUE_NONE);
	if (!ret)
		ret = set_window(fd, entry);
	return ret ? fail_fill(failure, ret, "window") : 0;
}

int tcp_stream_start(struct failure *failure, int fd, const struct tcp_stream *stream)
{
	const TcpStreamEntry *entry = &stream->entry;
	int ret;

	ret = set_tcp(fd, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP);
	if (ret)
		return fail_fill(failure, ret, "voice (repair mode stays on)");
	if (!has_unsent(stream))
		return 0;
	ret = write_queue(fd, stream->out + (entry->outq_len - entry->unsq_len), entry->unsq_len);
	if (ret)
		return fail_fill(failure, ret, "unsent bytes");
	if (tcp_state_has_own_fin(stream->state) && shutdown(fd, SHUT_WR))
		return fail_fill(failure, -errno, "end");
	return 0;
}

/* A connection of ours through the loopback device: @fd to *ret_peer. */
static int connect_to_self(int fd, int family, int *ret_peer)
{
	struct sockaddr_in6 name6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	struct sockaddr_in name4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct sockaddr *name = family == AF_INET6 ? (struct sockaddr *)&name6 : (struct sockaddr *)&name4;
	socklen_t size = family == AF_INET6 ? sizeof(name6) : sizeof(name4);
	_cleanup_fd_ int listener = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (listener < 0 || bind(listener, name, size) || listen(listener, 1) || getsockname(listener, name, &size) ||
	    connect(fd, name, size))
		return -errno;
	*ret_peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	return *ret_peer < 0 ? -errno : 0;
}

int tcp_stream_restore_ended(struct failure *failure, int fd, int family, const struct tcp_stream *stream)
{
	_cleanup_fd_ int peer = -1;
	int ret = make_room(fd, SO_RCVBUFFORCE, stream->entry.inq_len);

	if (!ret)
		ret = connect_to_self(fd, family, &peer);
	if (!ret)
		ret = make_room(peer, SO_SNDBUFFORCE, stream->entry.inq_len);
	if (!ret)
		ret = write_queue(peer, stream->in, stream->entry.inq_len);
	/* The peer's end comes first, so the time to wait for late packets is the peer's, which nobody waits for. */
	if (!ret && shutdown(peer, SHUT_WR))
		ret = -errno;
	if (!ret)
		ret = wait_for_state(fd, TCP_STATE_CLOSE_WAIT);
	if (!ret && shutdown(fd, SHUT_WR))
		ret = -errno;
	if (!ret)
		ret = wait_for_state(fd, TCP_STATE_CLOSE);
	return ret ? fail_fill(failure, ret, "unread bytes, after its end") : 0;
}
