/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "cmd/command.h"
#include "kernel/features.h"
#include "kinds/fd/network_lock.h"
#include "kinds/mem/track.h"

/* Questions of container engines whose answer decides on options that this release refuses. */
static const struct {
	const char *name, *later;
} later_features[] = {
	{"uffd-noncoop", "migration"},
	{"lazy_pages", "migration"},
	{"pidfd_store", "the RPC service"},
};

static int find_feature(const char *name)
{
	for (int i = 0; i < FEATURE_COUNT; i++)
		if (!strcmp(feature_descriptions[i].name, name))
			return i;
	/* Locks that were asked for with iptables are made with nftables. */
	if (!strcmp(name, "network_lock_iptables") || !strcmp(name, "nftables"))
		return FEATURE_NFTABLES;
	return -1;
}

static void list_names(void)
{
	for (int i = 0; i < FEATURE_COUNT; i++)
		printf("%s\n", feature_descriptions[i].name);
}

static int check_named(struct command *command, const char *name)
{
	if (!strcmp(name, "list")) {
		list_names();
		return 0;
	}
	for (size_t i = 0; i < ARRAY_SIZE(later_features); i++)
		if (!strcmp(name, later_features[i].name))
			return fail(&command->failure, EOPNOTSUPP, "feature-later", name, NULL, "comes with %s",
				    later_features[i].later);
	if (!strcmp(name, "mem_dirty_track"))
		return tracker_check(&command->failure);
	int feature = find_feature(name);
	if (feature < 0)
		return fail(&command->failure, EINVAL, "feature-unknown", name,
			    "`criu check --feature list` names them", "is no feature that criu asks for");
	if (!kernel_feature_probe(feature))
		return fail(&command->failure, EOPNOTSUPP, "feature-missing", name, NULL,
			    "this kernel does not have it, or does not allow it (%s)",
			    feature_descriptions[feature].purpose);
	return 0;
}

static void print_feature(const struct command *command, int feature, bool has)
{
	const struct feature_description *description = &feature_descriptions[feature];

	if (command->options->json)
		report_event("feature", "{s:s, s:b, s:b, s:s}", "name", description->name, "present", has, "required",
			     description->required, "purpose", description->purpose);
	else
		printf("%-22s %-4s %s%s\n", description->name, has ? "yes" : "no", description->purpose,
		       has || !description->required ? "" : " (required)");
}

static int check_all(struct command *command)
{
	struct kernel_features features;
	int missing = -1;

	kernel_features_probe(&features);
	for (int i = 0; i < FEATURE_COUNT; i++) {
		if (command->options->all)
			print_feature(command, i, features.has[i]);
		if (!features.has[i] && feature_descriptions[i].required && missing < 0)
			missing = i;
		else if (!features.has[i])
			log_info("kernel: no %s: %s", feature_descriptions[i].name, feature_descriptions[i].purpose);
	}
	if (missing < 0)
		return 0;
	return fail(&command->failure, EOPNOTSUPP, "feature-missing", "kernel",
		    "run as root with all capabilities; `criu check --all` lists everything",
		    "%s is missing or not allowed, which is needed to %s", feature_descriptions[missing].name,
		    feature_descriptions[missing].purpose);
}

/* A lock stays as long as the connections are nowhere: the tree was left stopped, or was killed and is to be restored.
 */
static void print_lock(void *context, const char *name)
{
	const struct command *command = context;

	if (command->options->json)
		report_event("network-lock", "{s:o}", "table", report_text(name));
	else
		printf("Network lock of a dump: table %s; restore its images, or end the stopped tree with `criu "
		       "resume` or "
		       "`criu kill`, which removes it. If the dump killed the tree it goes by itself after 15 minutes, "
		       "or "
		       "at once with `nft delete table inet %s`.\n",
		       name, name);
}

int verb_check(struct command *command)
{
	const struct text_list *names = &command->options->features;

	for (size_t i = 0; i < names->count; i++) {
		int r = check_named(command, names->items[i]);
		if (r < 0)
			return r;
	}
	if (names->count)
		return 0;
	int r = check_all(command);
	if (r < 0)
		return r;
	/* Not to be allowed to look is no reason to fail. */
	r = network_lock_list(-1, print_lock, command);
	if (r < 0)
		log_info("network locks cannot be listed: %s", strerror(-r));
	if (command->options->json)
		report_event("done", NULL);
	else
		printf("Looks good.\n");
	return 0;
}
