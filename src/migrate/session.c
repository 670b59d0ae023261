/* SPDX-License-Identifier: Apache-2.0 */
/* What both sides of a session share, and the side that connects. */
#include "migrate/session.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "migrate/door.h"
#include "migrate/frames.h"
#include "migrate/session_link.h"
#include "migrate/stream.h"

enum { DEFAULT_CONNECTIONS = 4, DEFAULT_SSH_CONNECTIONS = 2, DEFAULT_CONNECT_MS = 10000 };

bool is_loopback_address(const struct sockaddr *address)
{
	const struct sockaddr_in *ipv4 = (const void *)address;
	const struct sockaddr_in6 *ipv6 = (const void *)address;

	if (address->sa_family == AF_UNIX)
		return true;
	if (address->sa_family == AF_INET)
		return ntohl(ipv4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
	if (address->sa_family != AF_INET6)
		return false;
	if (IN6_IS_ADDR_V4MAPPED(&ipv6->sin6_addr))
		return ipv6->sin6_addr.s6_addr[12] == IN_LOOPBACKNET;
	return IN6_IS_ADDR_LOOPBACK(&ipv6->sin6_addr);
}

void session_host_name(char *name, size_t size)
{
	if (gethostname(name, size) < 0)
		snprintf(name, size, "unknown");
	name[size - 1] = 0;
}

void session_close(struct session *session)
{
	/* The control connection first: its end makes the other side let go of the others. */
	if (session->control)
		protocol_destroy(&session->protocol);
	stream_close(&session->control);
	for (size_t i = 0; i < ARRAY_SIZE(session->data); i++)
		stream_close(&session->data[i]);
	session->data_count = 0;
	if (session->door_is_open)
		close(session->door_fd);
	session->door_is_open = false;
	tls_credentials_free(&session->owned_tls);
}

/* ---- source ---- */

/* Memory in clear text leaves the machine only if the user said so. */
static int check_plain(struct session *session, struct stream *stream, struct failure *failure)
{
	struct sockaddr_storage address = {};
	socklen_t size = sizeof(address);

	if (session->options->insecure || getpeername(stream_fd(stream), (struct sockaddr *)&address, &size) < 0 ||
	    is_loopback_address((struct sockaddr *)&address))
		return 0;
	return fail(failure, EPERM, "insecure", stream_peer(stream),
		    "use tls:// or ssh://, or --insecure on both sides if the network is trusted",
		    "the memory of the tree would go there unencrypted");
}

static int open_tcp(struct session *session, struct failure *failure, struct stream **ret_stream)
{
	_cleanup_stream_ struct stream *stream = NULL;

	int r = stream_connect_tcp(session->endpoint.host, session->endpoint.port,
				   session->options->connect_timeout_ms ?: DEFAULT_CONNECT_MS, failure, &stream);
	if (!r && !session->tls)
		r = check_plain(session, stream, failure);
	if (r < 0)
		return r;
	*ret_stream = TAKE_POINTER(stream);
	return 0;
}

/* Opens a connection up to where messages can be sent. */
static int open_link(struct session *session, enum preamble_kind kind, struct failure *failure,
		     struct stream **ret_stream)
{
	const struct wire_options *options = session->options;
	_cleanup_stream_ struct stream *stream = NULL;
	uint8_t preamble[PREAMBLE_BYTES];
	char join[2 * SESSION_ID_BYTES + 1];
	int r;

	session_id_text(session->id, join);
	if (session->endpoint.scheme == ENDPOINT_SSH)
		r = ssh_open(&session->endpoint, &options->ssh, kind == PREAMBLE_CONTROL ? NULL : join, failure,
			     &stream);
	else
		r = open_tcp(session, failure, &stream);
	if (r < 0)
		return r;
	stream_set_cancel(stream, options->cancel_fd);
	/* A person may have to answer ssh's questions. */
	stream_set_timeout(stream, session->endpoint.scheme == ENDPOINT_SSH ? -1 : SESSION_SETUP_TIMEOUT_MS);
	preamble_encode(kind, session->id, preamble);
	r = stream_write_full(stream, preamble, sizeof(preamble));
	if (r < 0)
		return stream_fail(stream, r, failure);
	const char *name = session->endpoint.scheme == ENDPOINT_TLS ? session->endpoint.host : NULL;
	if (session->tls && (r = tls_start(&stream, session->tls, false, name, failure)) < 0)
		return r;
	*ret_stream = TAKE_POINTER(stream);
	return 0;
}

static int send_hello(struct session *session, struct failure *failure)
{
	const struct wire_options *options = session->options;
	MigrateHello hello = MIGRATE_HELLO__INIT;
	char host[65];

	session_host_name(host, sizeof(host));
	hello.version_min = PROTOCOL_VERSION_MIN;
	hello.version_max = PROTOCOL_VERSION_MAX;
	hello.criu_version = (char *)CRIU_VERSION;
	hello.features = options->features;
	hello.session_id = (ProtobufCBinaryData){SESSION_ID_BYTES, session->id};
	hello.session_secret = (ProtobufCBinaryData){SESSION_SECRET_BYTES, session->secret};
	hello.connections = session->connections;
	hello.codecs = SESSION_CODECS;
	hello.page_bytes = FRAME_PAGE_BYTES;
	hello.host = host;
	hello.pid = options->pid;
	hello.comm = (char *)(options->identity_comm ?: "");
	hello.has_dry_run = hello.dry_run = session->dry_run;
	hello.has_resume = hello.resume = session->resume;
	return protocol_send(&session->protocol, MESSAGE_HELLO, &hello, failure);
}

static int receive_hello_answer(struct session *session, struct failure *failure)
{
	_cleanup_message_ struct message message = {};

	int r = protocol_expect(&session->protocol, MESSAGE_HELLO_ANSWER, failure, &message);
	if (r < 0)
		return r;
	const MigrateHelloAnswer *answer = (MigrateHelloAnswer *)message.body;
	if (answer->version < PROTOCOL_VERSION_MIN || answer->version > PROTOCOL_VERSION_MAX)
		return fail(failure, EPROTO, "protocol-version", stream_peer(session->control),
			    "install the same criu on both machines", "criu %s there speaks version %u",
			    answer->criu_version, answer->version);
	if (answer->connections > session->connections)
		return fail(failure, EPROTO, "protocol-message", stream_peer(session->control), NULL,
			    "more connections are wanted than were offered");
	session->connections = answer->connections;
	session->features = answer->features & session->options->features;
	session->codecs = answer->codecs & SESSION_CODECS;
	snprintf(session->join_id, sizeof(session->join_id), "%s", answer->join_id);
	snprintf(session->peer_host, sizeof(session->peer_host), "%s", answer->host);
	return 0;
}

static int start(struct session *session, const struct endpoint *endpoint, const struct wire_options *options,
		 struct failure *failure)
{
	bool ssh = endpoint->scheme == ENDPOINT_SSH;

	session->side = MIGRATE_SOURCE;
	session->options = options;
	session->endpoint = *endpoint;
	session->dry_run = options->dry_run;
	session->connections = options->connections ?: ssh ? DEFAULT_SSH_CONNECTIONS : DEFAULT_CONNECTIONS;
	session->next_index = MIGRATE_MAX_CONNECTIONS;
	if (session->connections > MIGRATE_MAX_CONNECTIONS)
		return fail(failure, EINVAL, "connections", "--connections", NULL, "at most %d are possible",
			    MIGRATE_MAX_CONNECTIONS);
	if (endpoint->scheme != ENDPOINT_TLS)
		return 0;
	int r = tls_credentials_load(&options->tls, failure, &session->owned_tls);
	session->tls = session->owned_tls;
	return r;
}

static int greet(struct session *session, enum preamble_kind kind, struct failure *failure)
{
	int r = open_link(session, kind, failure, &session->control);
	if (r < 0)
		return r;
	protocol_init(&session->protocol, session->control, MIGRATE_SOURCE);
	r = send_hello(session, failure);
	if (!r)
		r = receive_hello_answer(session, failure);
	if (!r)
		stream_set_timeout(session->control, -1);
	return r;
}

int session_connect(struct session *session, const struct endpoint *endpoint, const struct wire_options *options,
		    struct failure *failure)
{
	*session = (struct session){};
	if (getrandom(session->id, sizeof(session->id), 0) != sizeof(session->id) ||
	    getrandom(session->secret, sizeof(session->secret), 0) != sizeof(session->secret))
		return fail_errno(failure, errno, "random", "session", NULL, "no random bytes");
	int r = start(session, endpoint, options, failure);
	if (!r)
		r = greet(session, PREAMBLE_CONTROL, failure);
	return !r && !session->dry_run ? session_open_data(session, failure) : r;
}

int session_reconnect(struct session *session, const struct endpoint *endpoint, const struct wire_options *options,
		      const uint8_t id[SESSION_ID_BYTES], const uint8_t secret[SESSION_SECRET_BYTES],
		      struct failure *failure)
{
	*session = (struct session){.resume = true};
	memcpy(session->id, id, sizeof(session->id));
	memcpy(session->secret, secret, sizeof(session->secret));
	int r = start(session, endpoint, options, failure);
	if (!r)
		r = greet(session, PREAMBLE_RETURN, failure);
	return r;
}

int session_ask_status(struct session *session, enum migrate_state own_state, struct failure *failure,
		       struct session_answer *ret_answer)
{
	_cleanup_message_ struct message message = {};
	ResumeSession resume = RESUME_SESSION__INIT;
	uint8_t proof[SESSION_PROOF_BYTES];

	session_proof(session->secret, SESSION_RESUME_LABEL, own_state, 0, proof);
	resume.session_id = (ProtobufCBinaryData){SESSION_ID_BYTES, session->id};
	resume.proof = (ProtobufCBinaryData){SESSION_PROOF_BYTES, proof};
	resume.state = own_state;
	int r = protocol_send(&session->protocol, MESSAGE_RESUME_SESSION, &resume, failure);
	if (!r)
		r = protocol_expect(&session->protocol, MESSAGE_SESSION_STATUS, failure, &message);
	if (r < 0)
		return r;
	const SessionStatus *status = (SessionStatus *)message.body;
	*ret_answer = (struct session_answer){
		.missing = status->missing_pages > 0, .ended = status->has_ended, .ended_status = status->ended};
	return 0;
}

/* Opens a connection and proves that it belongs to the session. The answer is on its way. */
static int start_join(struct session *session, enum connection_role role, uint32_t index, struct failure *failure,
		      struct stream **ret_stream)
{
	MigrateJoin joining = MIGRATE_JOIN__INIT;
	uint8_t proof[SESSION_PROOF_BYTES];

	int r = open_link(session, PREAMBLE_JOIN, failure, ret_stream);
	if (r < 0)
		return r;
	session_proof(session->secret, SESSION_JOIN_LABEL, role, index, proof);
	joining.session_id = (ProtobufCBinaryData){SESSION_ID_BYTES, session->id};
	joining.index = index;
	joining.role = role;
	joining.proof = (ProtobufCBinaryData){SESSION_PROOF_BYTES, proof};
	return message_send(*ret_stream, MESSAGE_JOIN, &joining, failure);
}

static int finish_join(struct stream *stream, uint32_t index, struct failure *failure)
{
	_cleanup_message_ struct message message = {};

	int r = message_receive(stream, 1u << MESSAGE_JOIN_ANSWER, failure, &message);
	if (r < 0)
		return r;
	if (((MigrateJoinAnswer *)message.body)->index != index)
		return fail(failure, EPROTO, "protocol-message", stream_peer(stream), NULL,
			    "a connection was taken for another one");
	stream_set_timeout(stream, -1);
	return 0;
}

/* All are started before the first answer is waited for: each may have to log in through ssh. */
int session_open_data(struct session *session, struct failure *failure)
{
	int r = 0;

	for (unsigned i = 0; i < session->connections && !r; i++)
		r = start_join(session, CONNECTION_PAGES, i, failure, &session->data[i]);
	for (unsigned i = 0; i < session->connections && !r; i++)
		r = finish_join(session->data[i], i, failure);
	if (!r)
		session->data_count = session->connections;
	return r;
}

int session_open(struct session *session, enum connection_role role, struct failure *failure,
		 struct stream **ret_stream)
{
	_cleanup_stream_ struct stream *stream = NULL;
	uint32_t index = session->next_index++;

	int r = start_join(session, role, index, failure, &stream);
	if (!r)
		r = finish_join(stream, index, failure);
	if (r < 0)
		return r;
	*ret_stream = TAKE_POINTER(stream);
	return 0;
}
