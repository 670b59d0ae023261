/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/endpoint.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *prefix;
	uint16_t default_port;
} schemes[] = {
	[ENDPOINT_SSH] = {"ssh://", 0},
	[ENDPOINT_TLS] = {"tls://", ENDPOINT_DEFAULT_PORT},
	[ENDPOINT_TCP] = {"tcp://", ENDPOINT_DEFAULT_PORT},
};

static int bad_endpoint(const char *text, struct failure *failure, const char *cause)
{
	char object[280];

	snprintf(object, sizeof(object), "address \"%s\"", text);
	return fail(failure, EINVAL, "address", object,
		    "write ssh://USER@HOST, tls://HOST:PORT or tcp://HOST:PORT, and IPv6 numbers in brackets", "%s",
		    cause);
}

/* No part may look like an option, or bring blanks into a command line. */
static bool is_word(const char *text, size_t length)
{
	if (!length || text[0] == '-')
		return false;
	for (size_t i = 0; i < length; i++)
		if (!isgraph((unsigned char)text[i]) || strchr("\"'`$\\;&|<>(){}/#?", text[i]))
			return false;
	return true;
}

static int parse_port(const char *text, uint16_t *ret_port)
{
	char *end;
	unsigned long port;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	port = strtoul(text, &end, 10);
	if (*end || port > UINT16_MAX)
		return -EINVAL;
	*ret_port = (uint16_t)port;
	return 0;
}

static int copy_word(char *to, size_t size, const char *from, size_t length)
{
	if (!is_word(from, length) || length >= size)
		return -EINVAL;
	memcpy(to, from, length);
	to[length] = 0;
	return 0;
}

/* [HOST]:PORT, HOST:PORT or HOST, into @endpoint. Returns what is wrong or NULL. */
static const char *parse_host_port(const char *text, struct endpoint *endpoint)
{
	const char *end, *after;

	if (text[0] == '[') {
		text++;
		end = strchr(text, ']');
		if (!end)
			return "the bracket is not closed";
		after = end + 1;
	} else {
		end = after = text + strcspn(text, ":");
		if (*end && strchr(end + 1, ':'))
			return "an IPv6 number needs brackets";
	}
	if (copy_word(endpoint->host, sizeof(endpoint->host), text, end - text) < 0)
		return "the host is not a name or number";
	if (!*after)
		return NULL;
	if (*after != ':' || parse_port(after + 1, &endpoint->port) < 0)
		return "the port is not a number from 0 to 65535";
	return NULL;
}

int endpoint_parse(const char *text, struct endpoint *ret_endpoint, struct failure *failure)
{
	for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
		size_t length = strlen(schemes[i].prefix);
		struct endpoint endpoint = {.scheme = i, .port = schemes[i].default_port};

		if (strncmp(text, schemes[i].prefix, length))
			continue;
		const char *rest = text + length;
		const char *at = strrchr(rest, '@');
		if (at && i != ENDPOINT_SSH)
			return bad_endpoint(text, failure, "only ssh:// takes a user");
		if (at && copy_word(endpoint.user, sizeof(endpoint.user), rest, at - rest) < 0)
			return bad_endpoint(text, failure, "the user is not a name");
		const char *wrong = parse_host_port(at ? at + 1 : rest, &endpoint);
		if (wrong)
			return bad_endpoint(text, failure, wrong);
		*ret_endpoint = endpoint;
		return 0;
	}
	return bad_endpoint(text, failure, "it starts with none of ssh://, tls:// and tcp://");
}

int endpoint_parse_listen(const char *text, struct endpoint *ret_endpoint, struct failure *failure)
{
	struct endpoint endpoint = {.scheme = ENDPOINT_TCP, .port = ENDPOINT_DEFAULT_PORT};
	const char *wrong = NULL;

	if (text[0] != ':')
		wrong = parse_host_port(text, &endpoint);
	else if (parse_port(text + 1, &endpoint.port) < 0)
		wrong = "the port is not a number from 0 to 65535";
	if (wrong) {
		char object[280];

		snprintf(object, sizeof(object), "--listen %s", text);
		return fail(failure, EINVAL, "address", object, "write HOST:PORT, and IPv6 numbers in brackets", "%s",
			    wrong);
	}
	*ret_endpoint = endpoint;
	return 0;
}

char *endpoint_text(const struct endpoint *endpoint, char *buffer, size_t size)
{
	bool number = strchr(endpoint->host, ':');
	char port[8] = "";

	if (endpoint->port)
		snprintf(port, sizeof(port), ":%u", endpoint->port);
	snprintf(buffer, size, "%s%s%s%s%s%s%s", schemes[endpoint->scheme].prefix, endpoint->user,
		 endpoint->user[0] ? "@" : "", number ? "[" : "", endpoint->host, number ? "]" : "", port);
	return buffer;
}
