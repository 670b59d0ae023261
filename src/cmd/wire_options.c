/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/wire_options.h"

void wire_options_fill(const struct options *options, struct wire_options *ret_wire)
{
	*ret_wire = (struct wire_options){
		.connections = options->connections,
		.codec = options->compress,
		.bandwidth = options->bandwidth,
		.tls =
			{
				.cacert = options->tls_cacert,
				.cacrl = options->tls_cacrl,
				.cert = options->tls_cert,
				.key = options->tls_key,
				.no_name_check = options->tls_no_cn_verify,
				.psk_file = options->psk_file,
			},
		.ssh = {.remote_criu = options->remote_criu},
		.insecure = options->insecure,
		.features = MIGRATE_FEATURE_MOVE_ADDRESS | MIGRATE_FEATURE_POST_COPY,
		.cancel_fd = -1,
	};
}
