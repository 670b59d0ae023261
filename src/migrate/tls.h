/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS above a stream, by GnuTLS: both sides show X.509 certificates of one authority, or both know one shared key.
 * TLS 1.3 only.
 */
#pragma once

#include <stdbool.h>

#include "base/fail.h"

struct stream;

#define TLS_DEFAULT_CACERT "/etc/pki/CA/cacert.pem"
#define TLS_DEFAULT_CACRL "/etc/pki/CA/cacrl.pem"
#define TLS_DEFAULT_CERT "/etc/pki/criu/cert.pem"
#define TLS_DEFAULT_KEY "/etc/pki/criu/private/key.pem"

/* As the user gave it; NULL = the default path (a revocation list at the default path may be missing). */
struct tls_options {
	const char *cacert, *cacrl, *cert, *key;
	bool no_name_check;   /* any certificate of the authority will do, whatever name it has */
	const char *psk_file; /* shared key instead of certificates; NULL = certificates */
};

/* Loaded keys; const once made, may serve many streams and forks. */
struct tls_credentials;

/*
 * Loads the files of @options. A key file that others may read is refused; a shared key has at least 16 bytes.
 * Returns 0 or a failure that names the file.
 */
int tls_credentials_load(const struct tls_options *options, struct failure *failure,
			 struct tls_credentials **ret_credentials);
void tls_credentials_free(struct tls_credentials **credentials);

/*
 * Shakes hands over *stream, which becomes the carrier of the returned one: *stream is replaced on success and left
 * as it is (useless, to be closed) on failure. Time limit and cancelling of the stream hold on.
 *
 * @server     this is the side that was connected to
 * @peer_name  name that the server's certificate must be for (client side); NULL = not checked
 * Returns 0 or a failure: what is wrong with which certificate, or that the keys differ.
 */
int tls_start(struct stream **stream, const struct tls_credentials *credentials, bool server, const char *peer_name,
	      struct failure *failure);
