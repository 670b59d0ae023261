# SPDX-License-Identifier: Apache-2.0
# The verbs a newcomer types; meson and ninja do the work.
BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=

.PHONY: all build deps demo test bench install clean format lint

all: build

deps:
	@tools/install-dependencies

build: deps
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) --prefix $(PREFIX)
	@ninja -C $(BUILD)

demo: build
	@tests/demo

test: build
	@tests/run

bench: build
	@tests/perf/bench

# Needs no test packages; a second install may name another PREFIX.
install:
	@tools/install-dependencies --build
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) --prefix $(PREFIX)
	@meson configure $(BUILD) --prefix $(PREFIX)
	@ninja -C $(BUILD)
	DESTDIR=$(DESTDIR) meson install -C $(BUILD) --no-rebuild

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

lint:
	@tools/lint

clean:
	rm -rf $(BUILD) build-*
