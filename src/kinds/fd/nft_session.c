/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why a thread: libnftables waits for the kernel with select(2), which ends the program when the netlink socket's
 * number is 1024 or more, and a dump of many tasks has thousands of descriptors open. A thread can leave the
 * descriptor table of its process (close_range() with CLOSE_RANGE_UNSHARE), so that numbers begin at 3 again. It can
 * also enter a network namespace for good, and the socket is in no table that a restored task inherits. It dies with
 * the process, however that ends, and the kernel then removes the tables that the socket owns.
 */
#include "kinds/fd/nft_session.h"

#include <errno.h>
#include <linux/close_range.h>
#include <nftables/libnftables.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/library.h"

#define NFT_FUNCTIONS(F)             \
	F(nft_ctx_new)               \
	F(nft_ctx_free)              \
	F(nft_ctx_buffer_output)     \
	F(nft_ctx_buffer_error)      \
	F(nft_ctx_get_output_buffer) \
	F(nft_ctx_get_error_buffer)  \
	F(nft_ctx_set_dry_run)       \
	F(nft_run_cmd_from_buffer)

struct libnftables {
	NFT_FUNCTIONS(LIBRARY_POINTER)
};

enum session_state {
	SESSION_OPENING,
	SESSION_IDLE,
	SESSION_BUSY,
	SESSION_CLOSING,
	SESSION_LEFT, /* closing, and nobody waits for it */
};

struct nft_session {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	enum session_state state;
	int netns_fd;
	struct libnftables library;
	struct nft_ctx *nft;
	const char *commands;
	bool check_only;
	int result;
	char *output;
	char error[256];
};

static int enter(struct nft_session *session)
{
	if (session->netns_fd >= 0 && setns(session->netns_fd, CLONE_NEWNET))
		return -errno;
	if (close_range(3, ~0U, CLOSE_RANGE_UNSHARE))
		return -errno;
	session->nft = session->library.nft_ctx_new(NFT_CTX_DEFAULT);
	if (!session->nft)
		return -ENOMEM;
	session->library.nft_ctx_buffer_output(session->nft);
	session->library.nft_ctx_buffer_error(session->nft);
	return 0;
}

/* The first line of what libnftables has to say, without the position in our own text. */
static void keep_error(struct nft_session *session)
{
	const char *text = session->library.nft_ctx_get_error_buffer(session->nft);
	const char *message = text ? strstr(text, "Error: ") : NULL;

	snprintf(session->error, sizeof(session->error), "%s",
		 message ? message + strlen("Error: ") : "libnftables gives no reason");
	session->error[strcspn(session->error, "\n")] = '\0';
}

static void run_commands(struct nft_session *session)
{
	const char *output;

	session->library.nft_ctx_set_dry_run(session->nft, session->check_only);
	session->result = session->library.nft_run_cmd_from_buffer(session->nft, session->commands) ? -EIO : 0;
	keep_error(session);
	output = session->library.nft_ctx_get_output_buffer(session->nft);
	free(session->output);
	session->output = xstrdup(output ? output : "");
}

static void set_state(struct nft_session *session, enum session_state state)
{
	session->state = state;
	pthread_cond_broadcast(&session->changed);
}

static void free_session(struct nft_session *session)
{
	pthread_mutex_destroy(&session->mutex);
	pthread_cond_destroy(&session->changed);
	free(session->output);
	free(session);
}

static void *session_main(void *argument)
{
	struct nft_session *session = argument;
	bool left;
	int ret;

	pthread_mutex_lock(&session->mutex);
	ret = enter(session);
	session->result = ret;
	set_state(session, SESSION_IDLE);
	while (!ret && session->state != SESSION_CLOSING && session->state != SESSION_LEFT) {
		if (session->state == SESSION_BUSY) {
			run_commands(session);
			set_state(session, SESSION_IDLE);
		}
		if (session->state == SESSION_IDLE)
			pthread_cond_wait(&session->changed, &session->mutex);
	}
	if (session->nft)
		session->library.nft_ctx_free(session->nft);
	left = session->state == SESSION_LEFT;
	pthread_mutex_unlock(&session->mutex);
	if (left)
		free_session(session);
	return NULL;
}

static void wait_idle(struct nft_session *session)
{
	while (session->state != SESSION_IDLE)
		pthread_cond_wait(&session->changed, &session->mutex);
}

/* Signals are for the main thread. */
static int start_thread(struct nft_session *session)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&session->thread, NULL, session_main, session);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

static int start(struct nft_session *session)
{
	int ret = start_thread(session);

	if (ret)
		return ret;
	pthread_mutex_lock(&session->mutex);
	wait_idle(session);
	ret = session->result;
	pthread_mutex_unlock(&session->mutex);
	if (ret)
		pthread_join(session->thread, NULL);
	return ret;
}

int nft_session_open(struct failure *failure, int netns_fd, struct nft_session **ret_session)
{
	static const char *const names[] = {NFT_FUNCTIONS(LIBRARY_NAME)};
	static const struct library library = {
		.file = "libnftables.so.1",
		.package = "libnftables1",
		.purpose = "locks of the network",
		.names = names,
		.name_count = ARRAY_SIZE(names),
	};
	struct nft_session *session = xcalloc(1, sizeof(*session));
	int ret = library_load(&library, &session->library, failure);

	session->netns_fd = netns_fd;
	pthread_mutex_init(&session->mutex, NULL);
	pthread_cond_init(&session->changed, NULL);
	if (!ret) {
		ret = start(session);
		if (ret)
			fail_errno(failure, ret, "nftables", NULL, "the kernel needs nf_tables", "cannot use nftables");
	}
	if (ret) {
		free_session(session);
		return ret;
	}
	*ret_session = session;
	return 0;
}

int nft_session_run(struct nft_session *session, const char *commands, bool check_only)
{
	int result;

	pthread_mutex_lock(&session->mutex);
	session->commands = commands;
	session->check_only = check_only;
	set_state(session, SESSION_BUSY);
	wait_idle(session);
	result = session->result;
	pthread_mutex_unlock(&session->mutex);
	return result;
}

const char *nft_session_output(const struct nft_session *session)
{
	return session->output;
}

const char *nft_session_error(const struct nft_session *session)
{
	return session->error;
}

void nft_session_close(struct nft_session *session)
{
	if (!session)
		return;
	pthread_mutex_lock(&session->mutex);
	set_state(session, SESSION_CLOSING);
	pthread_mutex_unlock(&session->mutex);
	pthread_join(session->thread, NULL);
	free_session(session);
}

void nft_session_leave(struct nft_session *session)
{
	if (!session)
		return;
	pthread_detach(session->thread);
	/* It frees itself as soon as it can take the mutex, which is when a mutex may be destroyed. */
	pthread_mutex_lock(&session->mutex);
	set_state(session, SESSION_LEFT);
	pthread_mutex_unlock(&session->mutex);
}
