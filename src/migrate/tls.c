/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GnuTLS makes one system call for each record of 16 KiB, and asks to be called again with the same data if that could
 * not be sent. So what it wants to send goes into a buffer first, which leaves in one call; it never sees a full
 * socket. Reading and writing may go on in two threads at once: GnuTLS allows that as long as nobody shakes hands
 * again, which TLS 1.3 has no word for.
 *
 * In TLS 1.3 the client is done before the server has looked at its certificate: a refusal arrives where the first
 * answer was to come. `death` tells it then.
 */
#include "migrate/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "migrate/gnutls_library.h"
#include "migrate/stream.h"

enum { MIN_PSK_BYTES = 16, PSK_KEY_BYTES = 32, BUFFER_BYTES = 256 << 10, RECORD_ROOM_BYTES = 64 << 10 };
#define PSK_USER "criu"
#define CIPHERS "-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+CHACHA20-POLY1305:+AES-256-GCM"

struct tls_credentials {
	struct gnutls library;
	gnutls_certificate_credentials_t certificates; /* NULL = a shared key */
	gnutls_psk_client_credentials_t psk_client;
	gnutls_psk_server_credentials_t psk_server;
	uint8_t psk[PSK_KEY_BYTES];
	gnutls_priority_t priority;
	bool no_name_check;
};

/* ---- loading ---- */

static int tls_file_failure(const struct tls_credentials *credentials, const char *what, const char *path,
			    const char *option, int error, struct failure *failure)
{
	char object[400], hint[80];

	snprintf(object, sizeof(object), "%s %.300s", what, path);
	snprintf(hint, sizeof(hint), "name another file with --%s", option);
	return fail(failure, EINVAL, "tls-file", object, hint, "cannot be used: %s",
		    credentials->library.gnutls_strerror(error));
}

/* Secrets that everybody can read are none. */
static int check_private(const char *what, const char *path, const char *option, struct failure *failure)
{
	struct stat status;
	char object[400], hint[80];

	snprintf(object, sizeof(object), "%s %.300s", what, path);
	snprintf(hint, sizeof(hint), "name another file with --%s", option);
	if (stat(path, &status) < 0)
		return fail_errno(failure, errno, "tls-file", object, hint, "cannot be read");
	if (status.st_mode & 07)
		return fail(failure, EPERM, "tls-key-public", object, "take the rights of others away with chmod 600",
			    "every user of this machine may read it");
	return 0;
}

static int load_certificates(struct tls_credentials *credentials, const struct tls_options *options,
			     struct failure *failure)
{
	const char *cacert = options->cacert ?: TLS_DEFAULT_CACERT, *cacrl = options->cacrl ?: TLS_DEFAULT_CACRL;
	const char *cert = options->cert ?: TLS_DEFAULT_CERT, *key = options->key ?: TLS_DEFAULT_KEY;

	credentials->library.gnutls_certificate_allocate_credentials(&credentials->certificates);
	int r = credentials->library.gnutls_certificate_set_x509_trust_file(credentials->certificates, cacert,
									    GNUTLS_X509_FMT_PEM);
	if (r < 0)
		return tls_file_failure(credentials, "certificate authority", cacert, "tls-cacert", r, failure);
	if (!r)
		return tls_file_failure(credentials, "certificate authority", cacert, "tls-cacert",
					GNUTLS_E_NO_CERTIFICATE_FOUND, failure);
	if (options->cacrl || access(cacrl, F_OK) == 0) {
		r = credentials->library.gnutls_certificate_set_x509_crl_file(credentials->certificates, cacrl,
									      GNUTLS_X509_FMT_PEM);
		if (r < 0)
			return tls_file_failure(credentials, "revocation list", cacrl, "tls-cacrl", r, failure);
	}
	r = check_private("private key", key, "tls-key", failure);
	if (r < 0)
		return r;
	r = credentials->library.gnutls_certificate_set_x509_key_file(credentials->certificates, cert, key,
								      GNUTLS_X509_FMT_PEM);
	return r < 0 ? tls_file_failure(credentials, "certificate", cert, "tls-cert", r, failure) : 0;
}

static int give_psk(gnutls_session_t session, const gnutls_datum_t *user, gnutls_datum_t *key)
{
	struct failure ignored = {};
	struct gnutls library;

	if (gnutls_load(&library, &ignored) < 0)
		return -1;
	const struct tls_credentials *credentials = library.gnutls_session_get_ptr(session);
	if (user->size != strlen(PSK_USER) || memcmp(user->data, PSK_USER, user->size))
		return -1;
	key->data = (*library.gnutls_malloc)(PSK_KEY_BYTES);
	if (!key->data)
		return -1;
	memcpy(key->data, credentials->psk, PSK_KEY_BYTES);
	key->size = PSK_KEY_BYTES;
	return 0;
}

static int load_psk(struct tls_credentials *credentials, const char *path, struct failure *failure)
{
	const gnutls_datum_t user = {(unsigned char *)PSK_USER, strlen(PSK_USER)};
	const gnutls_datum_t key = {credentials->psk, PSK_KEY_BYTES};
	_cleanup_free_ char *text = NULL;
	char object[400];
	size_t length;

	snprintf(object, sizeof(object), "shared key %.300s", path);
	int r = check_private("shared key", path, "psk-file", failure);
	if (r < 0)
		return r;
	r = read_text_at(AT_FDCWD, path, &text, &length);
	if (r < 0)
		return fail_errno(failure, r, "tls-file", object, NULL, "cannot be read");
	while (length && strchr("\r\n\t ", text[length - 1]))
		length--;
	if (length < MIN_PSK_BYTES)
		return fail(failure, EINVAL, "tls-psk-short", object,
			    "make one with `head -c 32 /dev/urandom | base64`", "has fewer than %d bytes",
			    MIN_PSK_BYTES);
	credentials->library.gnutls_hash_fast(GNUTLS_DIG_SHA256, text, length, credentials->psk);
	explicit_bzero(text, length);
	credentials->library.gnutls_psk_allocate_client_credentials(&credentials->psk_client);
	credentials->library.gnutls_psk_allocate_server_credentials(&credentials->psk_server);
	credentials->library.gnutls_psk_set_client_credentials2(credentials->psk_client, &user, &key,
								GNUTLS_PSK_KEY_RAW);
	credentials->library.gnutls_psk_set_server_credentials_function2(credentials->psk_server, give_psk);
	return 0;
}

int tls_credentials_load(const struct tls_options *options, struct failure *failure,
			 struct tls_credentials **ret_credentials)
{
	struct tls_credentials *credentials = xcalloc(1, sizeof(*credentials));
	const char *priority = options->psk_file ? "NORMAL:" CIPHERS ":-KX-ALL:+ECDHE-PSK:+DHE-PSK" : "NORMAL:" CIPHERS;

	credentials->no_name_check = options->no_name_check;
	int r = gnutls_load(&credentials->library, failure);
	if (!r)
		r = options->psk_file ? load_psk(credentials, options->psk_file, failure)
				      : load_certificates(credentials, options, failure);
	if (!r && credentials->library.gnutls_priority_init(&credentials->priority, priority, NULL) < 0)
		r = fail(failure, EINVAL, "tls", "TLS", NULL, "this GnuTLS has no TLS 1.3");
	if (r < 0) {
		tls_credentials_free(&credentials);
		return r;
	}
	*ret_credentials = credentials;
	return 0;
}

void tls_credentials_free(struct tls_credentials **credentials)
{
	struct tls_credentials *freed = *credentials;

	if (!freed)
		return;
	*credentials = NULL;
	if (freed->certificates)
		freed->library.gnutls_certificate_free_credentials(freed->certificates);
	if (freed->psk_client)
		freed->library.gnutls_psk_free_client_credentials(freed->psk_client);
	if (freed->psk_server)
		freed->library.gnutls_psk_free_server_credentials(freed->psk_server);
	if (freed->priority)
		freed->library.gnutls_priority_deinit(freed->priority);
	explicit_bzero(freed->psk, sizeof(freed->psk));
	free(freed);
}

/* ---- the stream ---- */

struct tls {
	struct gnutls library;
	gnutls_session_t session;
	uint8_t *buffer; /* of what GnuTLS has made and the socket has not got */
	size_t buffered, capacity;
	char death[200]; /* why the other side refused; "" = it did not */
};

static ssize_t pull(gnutls_transport_ptr_t transport, void *data, size_t size)
{
	struct stream *stream = transport;
	struct tls *tls = stream->data;
	ssize_t count = stream_fd_operations.read(stream, data, size);

	if (count >= 0)
		return count;
	tls->library.gnutls_transport_set_errno(tls->session, (int)-count);
	return -1;
}

static int pull_wait(gnutls_transport_ptr_t transport, unsigned timeout_ms)
{
	return stream_wait_readable(transport) < 0 ? 0 : 1;
}

static ssize_t push(gnutls_transport_ptr_t transport, const void *data, size_t size)
{
	struct stream *stream = transport;
	struct tls *tls = stream->data;

	if (tls->capacity - tls->buffered < size) {
		tls->capacity = tls->buffered + size + RECORD_ROOM_BYTES;
		tls->buffer = xrealloc_array(tls->buffer, tls->capacity, 1);
	}
	memcpy(tls->buffer + tls->buffered, data, size);
	tls->buffered += size;
	return (ssize_t)size;
}

/* Sends what is in the buffer. Returns 0 or -errno. */
static int flush(struct stream *stream)
{
	struct tls *tls = stream->data;
	size_t done = 0;
	int r = 0;

	while (done < tls->buffered && !r) {
		const struct iovec part = {tls->buffer + done, tls->buffered - done};
		ssize_t count = stream_fd_operations.writev(stream, &part, 1);

		if (count >= 0)
			done += (size_t)count;
		else
			r = count == -EAGAIN ? stream_wait_writable(stream) : (int)count;
	}
	tls->buffered = 0;
	return r;
}

/* The error of a GnuTLS call as -errno. */
static int tls_error(struct tls *tls, int error)
{
	switch (error) {
	case GNUTLS_E_AGAIN:
	case GNUTLS_E_INTERRUPTED:
		return -EAGAIN;
	case GNUTLS_E_FATAL_ALERT_RECEIVED:
		snprintf(tls->death, sizeof(tls->death), "the other side refuses: %s; see its log",
			 tls->library.gnutls_alert_get_name(tls->library.gnutls_alert_get(tls->session)));
		return -EACCES;
	case GNUTLS_E_PREMATURE_TERMINATION:
		return -ENODATA;
	case GNUTLS_E_PULL_ERROR:
	case GNUTLS_E_PUSH_ERROR:
		return -ECONNRESET;
	default:
		snprintf(tls->death, sizeof(tls->death), "TLS: %s", tls->library.gnutls_strerror(error));
		return -EPROTO;
	}
}

static ssize_t tls_read(struct stream *stream, void *data, size_t size)
{
	struct tls *tls = stream->data;
	ssize_t count = tls->library.gnutls_record_recv(tls->session, data, size);

	return count >= 0 ? count : tls_error(tls, (int)count);
}

static ssize_t tls_writev(struct stream *stream, const struct iovec *parts, int count)
{
	struct tls *tls = stream->data;
	size_t taken = 0;
	ssize_t sent = 1;

	tls->library.gnutls_record_cork(tls->session);
	for (int i = 0; i < count && taken < BUFFER_BYTES && sent > 0; i++) {
		for (size_t done = 0; done < parts[i].iov_len && taken < BUFFER_BYTES; done += (size_t)sent) {
			size_t size = parts[i].iov_len - done;

			size = size < BUFFER_BYTES - taken ? size : BUFFER_BYTES - taken;
			sent = tls->library.gnutls_record_send(tls->session, (const char *)parts[i].iov_base + done,
							       size);
			if (sent <= 0)
				break;
			taken += (size_t)sent;
		}
	}
	int r = tls->library.gnutls_record_uncork(tls->session, 0);
	if (sent < 0 || r < 0)
		return tls_error(tls, sent < 0 ? (int)sent : r);
	r = flush(stream);
	return r < 0 ? r : (ssize_t)taken;
}

static size_t tls_pending(struct stream *stream)
{
	struct tls *tls = stream->data;

	return tls->library.gnutls_record_check_pending(tls->session);
}

static void tls_goodbye(struct stream *stream)
{
	struct tls *tls = stream->data;

	tls->library.gnutls_bye(tls->session, GNUTLS_SHUT_WR);
	const struct iovec part = {tls->buffer, tls->buffered};
	if (tls->buffered)
		stream_fd_operations.writev(stream, &part, 1);
	tls->buffered = 0;
}

static const char *tls_death(struct stream *stream)
{
	struct tls *tls = stream->data;

	return tls->death[0] ? tls->death : NULL;
}

static void tls_free(struct stream *stream)
{
	struct tls *tls = stream->data;

	tls->library.gnutls_deinit(tls->session);
	free(tls->buffer);
	free(tls);
}

static const struct stream_operations tls_operations = {
	.name = "tls",
	.read = tls_read,
	.writev = tls_writev,
	.pending = tls_pending,
	.goodbye = tls_goodbye,
	.death = tls_death,
	.free = tls_free,
};

/* ---- handshake ---- */

static void set_credentials(gnutls_session_t session, const struct tls_credentials *credentials, bool server,
			    const char *peer_name)
{
	if (!credentials->certificates) {
		credentials->library.gnutls_credentials_set(session, GNUTLS_CRD_PSK,
							    server ? (void *)credentials->psk_server
								   : (void *)credentials->psk_client);
		return;
	}
	credentials->library.gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials->certificates);
	if (server)
		credentials->library.gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
	if (!server && peer_name)
		credentials->library.gnutls_server_name_set(session, GNUTLS_NAME_DNS, peer_name, strlen(peer_name));
	credentials->library.gnutls_session_set_verify_cert(session, credentials->no_name_check ? NULL : peer_name, 0);
}

static int handshake_failure(struct stream *stream, const struct tls_credentials *credentials, int error,
			     struct failure *failure)
{
	struct tls *tls = stream->data;
	const char *same = credentials->certificates
				   ? "both sides need certificates of the same authority (--tls-cacert, --tls-cert)"
				   : "give the same --psk-file on both sides";
	gnutls_datum_t text = {};

	if (error == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR &&
	    tls->library.gnutls_certificate_verification_status_print(
		    tls->library.gnutls_session_get_verify_cert_status(tls->session), GNUTLS_CRT_X509, &text, 0) >= 0) {
		int r = fail(failure, EACCES, "tls-certificate", stream->peer,
			     "see --tls-cacert, and --tls-no-cn-verify if only the name differs",
			     "its certificate is refused: %s", text.data);
		(*tls->library.gnutls_free)(text.data);
		return r;
	}
	if (error == GNUTLS_E_FATAL_ALERT_RECEIVED)
		return fail(failure, EACCES, "tls-refused", stream->peer, same, "the other side refuses: %s",
			    tls->library.gnutls_alert_get_name(tls->library.gnutls_alert_get(tls->session)));
	if (error == GNUTLS_E_PULL_ERROR || error == GNUTLS_E_PUSH_ERROR || error == GNUTLS_E_PREMATURE_TERMINATION)
		return fail(failure, ECONNRESET, "tls-ended", stream->peer, same,
			    "the other side ended the connection during the TLS handshake");
	return fail(failure, EPROTO, "tls", stream->peer, same, "no TLS connection: %s",
		    tls->library.gnutls_strerror(error));
}

/* Shakes hands until it is done. Returns 0 or a failure. */
static int shake_hands(struct stream *stream, const struct tls_credentials *credentials, struct failure *failure)
{
	struct tls *tls = stream->data;

	for (;;) {
		int error = tls->library.gnutls_handshake(tls->session);
		int r = flush(stream);

		if (error < 0 && tls->library.gnutls_error_is_fatal(error)) {
			/* Tells the other side why. */
			tls->library.gnutls_alert_send_appropriate(tls->session, error);
			flush(stream);
			stream_linger(stream);
			return handshake_failure(stream, credentials, error, failure);
		}
		if (r < 0)
			return stream_fail(stream, r, failure);
		if (!error)
			return 0;
		if (error != GNUTLS_E_AGAIN)
			continue;
		r = stream_wait_readable(stream);
		if (r < 0)
			return stream_fail(stream, r, failure);
	}
}

int tls_start(struct stream **stream, const struct tls_credentials *credentials, bool server, const char *peer_name,
	      struct failure *failure)
{
	struct tls *tls = xcalloc(1, sizeof(*tls));

	tls->library = credentials->library;
	int r = tls->library.gnutls_init(&tls->session, (server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK |
								GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS);
	if (r < 0) {
		free(tls);
		return fail(failure, EPROTO, "tls", stream_peer(*stream), NULL, "no TLS: %s",
			    credentials->library.gnutls_strerror(r));
	}
	tls->library.gnutls_session_set_ptr(tls->session, (void *)credentials);
	tls->library.gnutls_priority_set(tls->session, credentials->priority);
	set_credentials(tls->session, credentials, server, peer_name);
	tls->library.gnutls_transport_set_ptr(tls->session, *stream);
	tls->library.gnutls_transport_set_pull_function(tls->session, pull);
	tls->library.gnutls_transport_set_pull_timeout_function(tls->session, pull_wait);
	tls->library.gnutls_transport_set_push_function(tls->session, push);
	(*stream)->data = tls;
	(*stream)->operations = &tls_operations;
	return shake_hands(*stream, credentials, failure);
}
