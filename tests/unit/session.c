/* SPDX-License-Identifier: Apache-2.0 */
/* Two sides of a session through a listener: plain, TLS with certificates and with a shared key; states; returns. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "directory.h"
#include "base/fd.h"
#include "migrate/endpoint.h"
#include "migrate/listener.h"
#include "migrate/page_channel.h"
#include "migrate/page_receiver.h"
#include "migrate/session.h"
#include "migrate/stream.h"

/* ---- addresses ---- */

static void test_endpoints(void **state)
{
	struct failure failure = {};
	struct endpoint endpoint;
	char text[400];
	static const char *const wrong[] = {
		"host",          "ftp://host",    "tcp://",     "tcp://host:",     "tcp://host:70000",
		"tcp://host:7x", "tcp://::1",     "tcp://[::1", "tcp://user@host", "ssh://-oProxyCommand=x",
		"ssh://user@",   "ssh://-l@host", "ssh://a b",  "tls://a/b",       "ssh://h;reboot",
		"tcp://host:-1", "tcp://[::1]x",
	};

	assert_int_equal(endpoint_parse("ssh://root@dst", &endpoint, &failure), 0);
	assert_int_equal(endpoint.scheme, ENDPOINT_SSH);
	assert_string_equal(endpoint.user, "root");
	assert_string_equal(endpoint.host, "dst");
	assert_int_equal(endpoint.port, 0);
	assert_int_equal(endpoint_parse("tls://10.0.0.2", &endpoint, &failure), 0);
	assert_int_equal(endpoint.port, ENDPOINT_DEFAULT_PORT);
	assert_int_equal(endpoint_parse("tcp://[fe80::1%eth0]:99", &endpoint, &failure), 0);
	assert_string_equal(endpoint.host, "fe80::1%eth0");
	assert_string_equal(endpoint_text(&endpoint, text, sizeof(text)), "tcp://[fe80::1%eth0]:99");
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		failure_clear(&failure);
		assert_int_equal(endpoint_parse(wrong[i], &endpoint, &failure), -EINVAL);
	}
	failure_clear(&failure);
	assert_int_equal(endpoint_parse_listen(":1234", &endpoint, &failure), 0);
	assert_string_equal(endpoint.host, "");
	assert_int_equal(endpoint.port, 1234);
	assert_int_equal(endpoint_parse_listen("[::]:1", &endpoint, &failure), 0);
	assert_int_equal(endpoint_parse_listen("/x", &endpoint, &failure), -EINVAL);
}

/* ---- the other side, in a process of its own ---- */

enum { PAGES = 1024, BYTES = PAGES * FRAME_PAGE_BYTES };

static uint8_t arrived[BYTES];

static int place(void *context, uint32_t kind, uint32_t id, uint64_t address, uint32_t pages, struct failure *failure,
		 void **ret_memory)
{
	if (address + (uint64_t)pages * FRAME_PAGE_BYTES > BYTES)
		return fail(failure, EPROTO, "frame-address", NULL, NULL, "outside");
	*ret_memory = arrived + address;
	return 0;
}

static int zero(void *context, uint32_t kind, uint32_t id, uint64_t address, uint64_t pages, struct failure *failure)
{
	if (address + pages * FRAME_PAGE_BYTES > BYTES)
		return fail(failure, EPROTO, "frame-address", NULL, NULL, "outside");
	memset(arrived + address, 0, pages * FRAME_PAGE_BYTES);
	return 0;
}

static const struct page_receiver_operations operations = {.place = place, .zero = zero, .drop = zero};

static uint64_t sum_of(const uint8_t *bytes)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < BYTES; i++)
		sum = sum * 31 + bytes[i];
	return sum;
}

#define MUST(call)                                                                                      \
	do {                                                                                            \
		if ((call) < 0) {                                                                       \
			char line[1024];                                                                \
			fprintf(stderr, "%s: %s\n", #call, failure_line(&failure, line, sizeof(line))); \
			return 1;                                                                       \
		}                                                                                       \
	} while (0)

struct serve_context {
	const struct wire_options *wire;
	int pipe_fd; /* that is told the address */
};

/* Up to READY, then loses the link, is asked, and runs. */
static int serve(void *context, struct session_entry *entry)
{
	const struct serve_context *serving = context;
	struct page_receiver *receiver;
	struct failure failure = {};
	struct session session;
	struct message message;
	enum migrate_state peer_state;
	MigrateReady ready = MIGRATE_READY__INIT;
	MigrateRunning running = MIGRATE_RUNNING__INIT;
	SessionStatus status = SESSION_STATUS__INIT;

	MUST(session_accept(&session, entry, serving->wire, &failure));
	MUST(page_receiver_new(session.data, session.data_count, &operations, NULL, &failure, &receiver));
	MUST(protocol_expect(&session.protocol, MESSAGE_TREE, &failure, &message));
	message_free(&message);
	MUST(protocol_expect(&session.protocol, MESSAGE_ROUND_BEGIN, &failure, &message));
	message_free(&message);
	MUST(protocol_expect(&session.protocol, MESSAGE_IMAGES_END, &failure, &message));
	message_free(&message);
	/* The sum travels in a field that it has no business in. */
	ready.restore_ns = sum_of(arrived);
	MUST(protocol_send(&session.protocol, MESSAGE_READY, &ready, &failure));
	if (protocol_receive(&session.protocol, &failure, &message) == 0)
		return 2;
	failure_clear(&failure);
	page_receiver_free(&receiver);
	MUST(session_await_return(&session, 10000, &failure, &peer_state));
	if (peer_state != MIGRATE_COMMITTED)
		return 3;
	status.state = MIGRATE_READY;
	MUST(protocol_send(&session.protocol, MESSAGE_SESSION_STATUS, &status, &failure));
	MUST(protocol_expect(&session.protocol, MESSAGE_COMMIT, &failure, &message));
	message_free(&message);
	running.pid = 5;
	MUST(protocol_send(&session.protocol, MESSAGE_RUNNING, &running, &failure));
	MUST(protocol_expect(&session.protocol, MESSAGE_RELEASED, &failure, &message));
	message_free(&message);
	session_close(&session);
	return 7;
}

struct other_side {
	pid_t pid;
	struct endpoint endpoint;
};

static void tell_address(void *context, const char *address)
{
	const struct serve_context *serving = context;

	dprintf(serving->pipe_fd, "%s", address);
}

/* Starts a listener on a free port of the loopback. */
static void start_other_side(struct other_side *other, const struct wire_options *wire, bool tls)
{
	char address[120] = "tcp://";
	struct failure failure = {};
	int pipes[2];

	assert_int_equal(pipe(pipes), 0);
	other->pid = fork();
	if (!other->pid) {
		int status = 1;

		struct serve_context context = {wire, pipes[1]};
		struct listener_options options = {
			.listen = "127.0.0.1:0",
			.once = true,
			.secure = tls,
			.wire = wire,
			.serve = serve,
			.listening = tell_address,
			.context = &context,
			.stop_fd = -1,
		};
		alarm(60);
		if (listener_run(&options, &failure, &status) < 0)
			_exit(98);
		_exit(status);
	}
	ssize_t length = read(pipes[0], address + 6, sizeof(address) - 7);
	assert_true(length > 0);
	address[6 + length] = 0;
	assert_int_equal(endpoint_parse(address, &other->endpoint, &failure), 0);
	if (tls)
		other->endpoint.scheme = ENDPOINT_TLS;
	close(pipes[0]);
	close(pipes[1]);
}

static int other_status(struct other_side *other)
{
	int status;

	assert_int_equal(waitpid(other->pid, &status, 0), other->pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void send_tree(struct session *session, struct failure *failure)
{
	MigrateTask task = MIGRATE_TASK__INIT, *tasks[] = {&task};
	MigrateTree tree = MIGRATE_TREE__INIT;
	RoundBegin begin = ROUND_BEGIN__INIT;

	task.pid = 41;
	task.space_id = 41;
	tree.n_tasks = 1;
	tree.tasks = tasks;
	begin.round = 1;
	begin.last = true;
	assert_int_equal(protocol_send(&session->protocol, MESSAGE_TREE, &tree, failure), 0);
	assert_int_equal(protocol_send(&session->protocol, MESSAGE_ROUND_BEGIN, &begin, failure), 0);
}

static void send_pages(struct session *session, const uint8_t *pages, struct failure *failure)
{
	struct page_channel *channel;
	const struct page_channel_options options = {
		.streams = session->data, .stream_count = session->data_count, .codecs = session->codecs};

	assert_int_equal(page_channel_new(&options, failure, &channel), 0);
	assert_int_equal(page_channel_send(channel, SPACE_PROCESS, 41, 0, pages, BYTES, failure), 0);
	assert_int_equal(page_channel_barrier(channel, failure), 0);
	page_channel_free(&channel);
}

static void whole_session_with(struct other_side *other, const struct wire_options *wire)
{
	static uint8_t pages[BYTES];
	struct failure failure = {};
	struct session session;
	struct message message;
	ImagesEnd end = IMAGES_END__INIT;
	MigrateCommit commit = MIGRATE_COMMIT__INIT;
	PostCopyDone released = POST_COPY_DONE__INIT;
	uint8_t id[SESSION_ID_BYTES], secret[SESSION_SECRET_BYTES];
	struct session_answer answer;

	for (size_t i = 0; i < BYTES; i++)
		pages[i] = (uint8_t)(i / 5000 % 3 ? i * 7 + i / 999 : 0);
	assert_int_equal(session_connect(&session, &other->endpoint, wire, &failure), 0);
	assert_int_equal(session.data_count, 3);
	/* Out of its state: nothing is sent. */
	assert_int_equal(protocol_send(&session.protocol, MESSAGE_IMAGES_END, &end, &failure), -EPROTO);
	failure_clear(&failure);
	send_tree(&session, &failure);
	send_pages(&session, pages, &failure);
	assert_int_equal(protocol_send(&session.protocol, MESSAGE_IMAGES_END, &end, &failure), 0);
	assert_int_equal(protocol_expect(&session.protocol, MESSAGE_READY, &failure, &message), 0);
	assert_true(((MigrateReady *)message.body)->restore_ns == sum_of(pages));
	message_free(&message);
	memcpy(id, session.id, sizeof(id));
	memcpy(secret, session.secret, sizeof(secret));
	session_close(&session);

	/* Somebody without the secret gets nothing. */
	uint8_t wrong[SESSION_SECRET_BYTES] = {1};
	assert_true(session_reconnect(&session, &other->endpoint, wire, id, wrong, &failure) < 0);
	assert_string_equal(failure.code, "session-proof");
	session_close(&session);
	failure_clear(&failure);

	assert_int_equal(session_reconnect(&session, &other->endpoint, wire, id, secret, &failure), 0);
	assert_int_equal(session_ask_status(&session, MIGRATE_COMMITTED, &failure, &answer), 0);
	assert_int_equal(session.protocol.state, MIGRATE_READY);
	assert_false(answer.ended || answer.missing);
	commit.session_id = (ProtobufCBinaryData){sizeof(id), id};
	assert_int_equal(protocol_send(&session.protocol, MESSAGE_COMMIT, &commit, &failure), 0);
	assert_int_equal(protocol_expect(&session.protocol, MESSAGE_RUNNING, &failure, &message), 0);
	message_free(&message);
	assert_int_equal(protocol_send(&session.protocol, MESSAGE_RELEASED, &released, &failure), 0);
	session_close(&session);
}

static void whole_session(const struct wire_options *wire, bool tls)
{
	struct other_side other;

	start_other_side(&other, wire, tls);
	whole_session_with(&other, wire);
	assert_int_equal(other_status(&other), 7);
}

static void test_plain(void **state)
{
	const struct wire_options wire = {.connections = 3, .pid = 41, .cancel_fd = -1};

	whole_session(&wire, false);
}

/* ---- TLS ---- */

static char directory[DIRECTORY_BYTES];

static char *file_name(const char *name)
{
	return xasprintf("%s/%s", directory, name);
}

static void write_file(const char *path, const char *text, mode_t mode)
{
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);

	assert_true(fd >= 0);
	assert_int_equal(fchmod(fd, mode), 0);
	assert_int_equal(write_full(fd, text, strlen(text)), 0);
}

static void test_shared_key(void **state)
{
	_cleanup_free_ char *key = file_name("psk"), *other_key = file_name("psk2");
	struct failure failure = {};
	struct wire_options wire = {.connections = 3, .pid = 41, .cancel_fd = -1, .tls.psk_file = key};
	struct wire_options stranger = wire;
	struct other_side other;
	struct session session;

	write_file(key, "a secret of many bytes\n", 0600);
	write_file(other_key, "another secret of many bytes\n", 0600);
	whole_session(&wire, true);
	stranger.tls.psk_file = other_key;
	start_other_side(&other, &wire, true);
	assert_true(session_connect(&session, &other.endpoint, &stranger, &failure) < 0);
	assert_string_equal(failure.code, "tls-refused");
	session_close(&session);
	assert_int_equal(other_status(&other), 1);
	failure_clear(&failure);
	write_file(other_key, "another secret of many bytes\n", 0644);
	assert_int_equal(session_connect(&session, &other.endpoint, &stranger, &failure), -EPERM);
	assert_string_equal(failure.code, "tls-key-public");
	session_close(&session);
	failure_clear(&failure);
	write_file(other_key, "short", 0600);
	assert_int_equal(session_connect(&session, &other.endpoint, &stranger, &failure), -EINVAL);
	assert_string_equal(failure.code, "tls-psk-short");
	session_close(&session);
}

/* An authority, and a certificate for 127.0.0.1. */
static void make_certificates(const char *prefix)
{
	char command[2000];

	snprintf(command, sizeof(command),
		 "cd %s && umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
		 "-subj /CN=test-authority -keyout %sca.key -out %sca.pem 2>/dev/null && "
		 "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=127.0.0.1 -keyout %skey.pem "
		 "-out %s.csr 2>/dev/null && printf 'subjectAltName=IP:127.0.0.1' >%s.ext && "
		 "openssl x509 -req -in %s.csr -CA %sca.pem -CAkey %sca.key -CAcreateserial -days 2 -extfile %s.ext "
		 "-out %scert.pem 2>/dev/null",
		 directory, prefix, prefix, prefix, prefix, prefix, prefix, prefix, prefix, prefix, prefix);
	assert_int_equal(system(command), 0);
}

static void test_certificates(void **state)
{
	_cleanup_free_ char *ca = file_name("a-ca.pem"), *cert = file_name("a-cert.pem"), *key = file_name("a-key.pem");
	_cleanup_free_ char *strange_cert = file_name("b-cert.pem"), *strange_key = file_name("b-key.pem");
	_cleanup_free_ char *strange_ca = file_name("b-ca.pem");
	struct failure failure = {};
	const struct wire_options wire = {
		.connections = 3,
		.pid = 41,
		.cancel_fd = -1,
		.tls = {.cacert = ca, .cert = cert, .key = key},
	};
	struct wire_options stranger = wire;
	struct other_side other;
	struct session session;

	make_certificates("a-");
	make_certificates("b-");
	whole_session(&wire, true);

	/* The client is one of another authority. */
	stranger.tls.cert = strange_cert;
	stranger.tls.key = strange_key;
	start_other_side(&other, &wire, true);
	assert_true(session_connect(&session, &other.endpoint, &stranger, &failure) < 0);
	session_close(&session);
	assert_int_equal(other_status(&other), 1);

	/* The server is. */
	failure_clear(&failure);
	stranger = wire;
	stranger.tls.cacert = strange_ca;
	start_other_side(&other, &wire, true);
	assert_int_equal(session_connect(&session, &other.endpoint, &stranger, &failure), -EACCES);
	assert_string_equal(failure.code, "tls-certificate");
	session_close(&session);
	assert_int_equal(other_status(&other), 1);

	/* The name is another one; which --tls-no-cn-verify lets pass. */
	failure_clear(&failure);
	start_other_side(&other, &wire, true);
	snprintf(other.endpoint.host, sizeof(other.endpoint.host), "localhost");
	assert_int_equal(session_connect(&session, &other.endpoint, &wire, &failure), -EACCES);
	assert_string_equal(failure.code, "tls-certificate");
	session_close(&session);
	assert_int_equal(other_status(&other), 1);
	failure_clear(&failure);
	stranger = wire;
	stranger.tls.no_name_check = true;
	start_other_side(&other, &wire, true);
	snprintf(other.endpoint.host, sizeof(other.endpoint.host), "localhost");
	assert_int_equal(session_connect(&session, &other.endpoint, &stranger, &failure), 0);
	session_close(&session);
	other_status(&other);
}

/* ---- ssh ---- */

/* This program again, in the place of `criu receive` on the other side. */
static int receive_by_ssh(int count, char **arguments)
{
	const struct wire_options wire = {.connections = 3, .cancel_fd = -1};
	struct serve_context context = {&wire, -1};
	const struct listener_options options = {
		.stdio = true, .wire = &wire, .serve = serve, .context = &context, .stop_fd = -1};
	struct failure failure = {};
	char line[1024];
	int status = 1;

	alarm(60);
	int r = count == 4 && !strcmp(arguments[2], "--join") ? listener_join(arguments[3], &failure)
							      : listener_run(&options, &failure, &status);
	if (r < 0)
		fprintf(stderr, "%s\n", failure_line(&failure, line, sizeof(line)));
	return r < 0 ? 1 : status;
}

/* What looks like ssh and runs the command here; like there, the command lives on when ssh is ended. */
static char *make_ssh(const char *command)
{
	char *path = file_name("ssh");
	_cleanup_free_ char *script =
		xasprintf("#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\n[ \"$2\" = me@there ] || exit 9\n"
			  "shift 2\n%s\n",
			  command);

	write_file(path, script, 0700);
	return path;
}

static void test_ssh(void **state)
{
	char self[300];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	_cleanup_free_ char *program = make_ssh("exec 3<&0\nsh -c \"$*\" <&3 3<&- &\nwait $!");
	struct wire_options wire = {.connections = 3, .pid = 41, .cancel_fd = -1};
	struct other_side other = {};
	struct failure failure = {};
	struct session session;

	assert_true(length > 0);
	self[length] = 0;
	wire.ssh.program = program;
	wire.ssh.remote_criu = self;
	assert_int_equal(endpoint_parse("ssh://me@there:22", &other.endpoint, &failure), 0);
	whole_session_with(&other, &wire);

	wire.ssh.remote_criu = "/nowhere/criu";
	assert_true(session_connect(&session, &other.endpoint, &wire, &failure) < 0);
	assert_non_null(strstr(failure.cause, "--remote-criu"));
	session_close(&session);

	failure_clear(&failure);
	_cleanup_free_ char *refusing = make_ssh("echo me@there: Permission denied >&2; exit 255");
	wire.ssh.program = refusing;
	assert_true(session_connect(&session, &other.endpoint, &wire, &failure) < 0);
	assert_non_null(strstr(failure.cause, "Permission denied"));
	session_close(&session);

	failure_clear(&failure);
	wire.ssh.program = "/nowhere/ssh";
	assert_true(session_connect(&session, &other.endpoint, &wire, &failure) < 0);
	assert_non_null(strstr(failure.cause, "/nowhere/ssh"));
	session_close(&session);
}

/* ---- what is refused ---- */

static void test_not_in_clear_text(void **state)
{
	const struct wire_options wire = {.connections = 1, .pid = 41, .cancel_fd = -1};
	const struct listener_options options = {.listen = "0.0.0.0:0", .wire = &wire, .stop_fd = -1};
	struct failure failure = {};
	int status;

	assert_int_equal(listener_run(&options, &failure, &status), -EPERM);
	assert_string_equal(failure.code, "insecure");
}

static void test_garbage(void **state)
{
	static const char garbage[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n and more of it";
	const struct wire_options wire = {.connections = 3, .pid = 41, .cancel_fd = -1};
	struct failure failure = {};
	struct stream *stream;
	struct other_side other;
	char byte;

	start_other_side(&other, &wire, false);
	assert_int_equal(stream_connect_tcp(other.endpoint.host, other.endpoint.port, 5000, &failure, &stream), 0);
	assert_int_equal(stream_write_full(stream, garbage, sizeof(garbage)), 0);
	assert_true(stream_read_full(stream, &byte, 1) < 0);
	stream_close(&stream);
	/* It goes on listening. */
	assert_int_equal(waitpid(other.pid, NULL, WNOHANG), 0);
	kill(other.pid, SIGKILL);
	other_status(&other);
}

static void test_cancel(void **state)
{
	int event_fd = eventfd(1, EFD_CLOEXEC);
	struct stream *pair[2];
	char byte;

	assert_int_equal(stream_pair(pair), 0);
	stream_set_cancel(pair[0], event_fd);
	assert_int_equal(stream_read_full(pair[0], &byte, 1), -ECANCELED);
	stream_set_cancel(pair[0], -1);
	stream_set_timeout(pair[0], 1);
	assert_int_equal(stream_read_full(pair[0], &byte, 1), -ETIMEDOUT);
	stream_shutdown(pair[1]);
	assert_int_equal(stream_read_full(pair[0], &byte, 1), -ENODATA);
	assert_int_equal(stream_write_full(pair[0], "x", 1), -EPIPE);
	stream_close(&pair[0]);
	stream_close(&pair[1]);
	close(event_fd);
}

static void *read_byte(void *stream)
{
	char byte;

	return (void *)(intptr_t)stream_read_full(stream, &byte, 1);
}

/* sshd gives pipes to its commands: a thread that waits for one must leave too. */
static void test_shutdown_of_pipes(void **state)
{
	struct stream *stream;
	int in[2], out[2];
	pthread_t thread;
	void *result;

	assert_int_equal(pipe(in), 0);
	assert_int_equal(pipe(out), 0);
	assert_int_equal(stream_from_fds(in[0], out[1], "pipes", &stream), 0);
	assert_int_equal(pthread_create(&thread, NULL, read_byte, stream), 0);
	stream_shutdown(stream);
	assert_int_equal(pthread_join(thread, &result), 0);
	assert_int_equal((int)(intptr_t)result, -ENODATA);
	assert_int_equal(stream_write_full(stream, "x", 1), -EPIPE);
	stream_close(&stream);
	close(in[1]);
	close(out[0]);
}

static int make_directory(void **state)
{
	directory_make(directory);
	return 0;
}

static int remove_directory(void **state)
{
	directory_remove(directory);
	return 0;
}

int main(int count, char **arguments)
{
	if (count > 2 && !strcmp(arguments[1], "receive"))
		return receive_by_ssh(count, arguments);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_endpoints),
		cmocka_unit_test(test_plain),
		cmocka_unit_test(test_shared_key),
		cmocka_unit_test(test_certificates),
		cmocka_unit_test(test_ssh),
		cmocka_unit_test(test_not_in_clear_text),
		cmocka_unit_test(test_garbage),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_shutdown_of_pipes),
	};

	return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
