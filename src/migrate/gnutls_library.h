/* SPDX-License-Identifier: Apache-2.0 */
/* GnuTLS, loaded when a connection is to be encrypted (base/library.h). */
#pragma once

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <gnutls/crypto.h>

#include "base/library.h"

#define GNUTLS_FUNCTIONS(F)                             \
	F(gnutls_alert_get)                             \
	F(gnutls_alert_get_name)                        \
	F(gnutls_alert_send_appropriate)                \
	F(gnutls_bye)                                   \
	F(gnutls_certificate_allocate_credentials)      \
	F(gnutls_certificate_free_credentials)          \
	F(gnutls_certificate_server_set_request)        \
	F(gnutls_certificate_set_x509_crl_file)         \
	F(gnutls_certificate_set_x509_key_file)         \
	F(gnutls_certificate_set_x509_trust_file)       \
	F(gnutls_certificate_verification_status_print) \
	F(gnutls_credentials_set)                       \
	F(gnutls_deinit)                                \
	F(gnutls_error_is_fatal)                        \
	F(gnutls_free)                                  \
	F(gnutls_handshake)                             \
	F(gnutls_hash_fast)                             \
	F(gnutls_init)                                  \
	F(gnutls_malloc)                                \
	F(gnutls_priority_deinit)                       \
	F(gnutls_priority_init)                         \
	F(gnutls_priority_set)                          \
	F(gnutls_psk_allocate_client_credentials)       \
	F(gnutls_psk_allocate_server_credentials)       \
	F(gnutls_psk_free_client_credentials)           \
	F(gnutls_psk_free_server_credentials)           \
	F(gnutls_psk_set_client_credentials2)           \
	F(gnutls_psk_set_server_credentials_function2)  \
	F(gnutls_record_check_pending)                  \
	F(gnutls_record_cork)                           \
	F(gnutls_record_recv)                           \
	F(gnutls_record_send)                           \
	F(gnutls_record_uncork)                         \
	F(gnutls_server_name_set)                       \
	F(gnutls_session_get_ptr)                       \
	F(gnutls_session_get_verify_cert_status)        \
	F(gnutls_session_set_ptr)                       \
	F(gnutls_session_set_verify_cert)               \
	F(gnutls_strerror)                              \
	F(gnutls_transport_set_errno)                   \
	F(gnutls_transport_set_ptr)                     \
	F(gnutls_transport_set_pull_function)           \
	F(gnutls_transport_set_pull_timeout_function)   \
	F(gnutls_transport_set_push_function)

struct gnutls {
	GNUTLS_FUNCTIONS(LIBRARY_POINTER)
};

/* Fills @ret_gnutls. Returns 0 or a failure. */
int gnutls_load(struct gnutls *ret_gnutls, struct failure *failure);
