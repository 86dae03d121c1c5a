# GNU make. `make help` lists the targets; DESTDIR and PREFIX are honoured by install and uninstall.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
INSTALL ?= install
BINDIR = $(DESTDIR)$(PREFIX)/bin
MANDIR = $(DESTDIR)$(PREFIX)/share/man
TARGET = $(or $(CARGO_TARGET_DIR),target)
# Where the programs lie that are installed or packed. Who sets it has built them: nothing is built then.
BUILT = $(TARGET)/release
GIVEN = $(filter command,$(origin BUILT))
# Where dist and deb put what they made.
DISTDIR ?= dist
# Static programs: with musl, which is whole in them, where this Rust has it and there is its C compiler (ring's C).
# Otherwise with glibc, which is not quite: see README, Packages.
HOST = $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
MUSL = $(HOST:-gnu=-musl)
DIST_TARGET ?= $(if $(and $(wildcard $(shell rustc --print sysroot 2>/dev/null)/lib/rustlib/$(MUSL)/lib/*.rlib),$(shell command -v musl-gcc)),$(MUSL),$(HOST))
DIST_PROFILE ?= release
DIST_BUILT = $(TARGET)/$(DIST_TARGET)/$(if $(filter dev,$(DIST_PROFILE)),debug,$(DIST_PROFILE))
# No path of this machine stands in the programs.
DIST_FLAGS = -C target-feature=+crt-static --remap-path-prefix=$(CURDIR)=/nirvana --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo

TOOLS = heartbeat logreopen replsock spawnwork watchtouch
PAGES1 = $(wildcard man/man1/*.1)
PAGES7 = $(wildcard man/man7/*.7)
SCRIPTS = $(wildcard .ci/run completions/generate docs/*.sh packaging/*.sh tests/*.sh tests/apps/*.sh tests/bench/*.sh tests/uml/*.sh) $(EXAMPLE_SCRIPTS)
# Run by whatever `sh` is on a host: checked as POSIX and as dash has it (shellcheck does not know busybox everywhere).
EXAMPLE_SCRIPTS = $(wildcard examples/deploy/deploy examples/fleet/roll examples/openrc/shop $(foreach kind,runit s6,$(foreach name,run finish conf,examples/$(kind)/$(name))))
EXAMPLES = $(shell find examples -name node_modules -prune -o -type f ! -name package-lock.json -print)
COMPLETIONS = $(foreach tool,$(TOOLS),bash-completion/completions/$(tool) zsh/site-functions/_$(tool) fish/vendor_completions.d/$(tool).fish)
SHAREDIR = $(DESTDIR)$(PREFIX)/share
EXAMPLEDIR = $(DESTDIR)$(PREFIX)/share/nirvana/examples

# Modules of common, and tests of such as have others too, that ask the system for nothing that Miri does not have.
# Without proptest's own cases, which take it minutes each to make up.
PURE = ask:: cgroup::tests::where cgroup::tests::whose child::tests::a_command cli:: error:: event:: exit:: lines:: limiter:: time:: \
	--skip whatever --skip any_cut --skip jitter
COMMA = ,

.DEFAULT_GOAL = all
.PHONY: all test check man install uninstall dist deb demo soak-logs soak fuzz miri systemd audit bench clean help cargo

all: cargo ## build the programs, optimised, into target/release
	$(CARGO) build --release $(TOOLS:%=--package %)

test: cargo ## install what the tests need, build everything, run all tests
	tests/setup.sh
	$(CARGO) build --workspace --all-targets
	NIRVANA_BUILT=1 tests/run.sh

check: cargo ## formatting, clippy, man pages and shell scripts, without one complaint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	tests/lint-man.sh
	shellcheck $(SCRIPTS)
	shellcheck --shell=sh $(EXAMPLE_SCRIPTS)
	shellcheck --shell=dash $(EXAMPLE_SCRIPTS)

man: ## show the man pages as they lie here
	@for page in $(PAGES1) $(PAGES7); do man -l "$$page" 2>/dev/null || mandoc -a "$$page" || exit; done

install: ## install programs, man pages, completions and examples below DESTDIR and PREFIX (/usr/local)
	@for tool in $(TOOLS); do [ -x "$(BUILT)/$$tool" ] || { echo "make: $(BUILT)/$$tool is not built: run 'make' first (as yourself, not as root)" >&2; exit 2; }; done
	$(INSTALL) -d "$(BINDIR)" "$(MANDIR)/man1" "$(MANDIR)/man7"
	$(INSTALL) -m 755 $(TOOLS:%="$(BUILT)/%") "$(BINDIR)"
	$(INSTALL) -m 644 $(PAGES1) "$(MANDIR)/man1"
	$(INSTALL) -m 644 $(PAGES7) "$(MANDIR)/man7"
	@for file in $(COMPLETIONS); do tool=$${file##*/}; tool=$${tool#_}; tool=$${tool%.fish}; shell=$${file%%[-/]*}; \
		$(INSTALL) -D -m 644 /dev/null "$(SHAREDIR)/$$file" && \
		completions/generate "$(BUILT)/$$tool" $$shell >"$(SHAREDIR)/$$file" || exit; done
	@for file in $(EXAMPLES); do mode=644; [ ! -x "$$file" ] || mode=755; $(INSTALL) -D -m $$mode "$$file" "$(EXAMPLEDIR)/$${file#examples/}" || exit; done

uninstall: ## remove what install put there, and nothing else
	rm -f $(TOOLS:%="$(BINDIR)/%") $(patsubst man/%,"$(MANDIR)/%",$(PAGES1) $(PAGES7))
	rm -f $(COMPLETIONS:%="$(SHAREDIR)/%") $(patsubst examples/%,"$(EXAMPLEDIR)/%",$(EXAMPLES))
	@for directory in $(sort $(dir $(EXAMPLES))); do rmdir "$(EXAMPLEDIR)/$${directory#examples/}" 2>/dev/null; done; rmdir "$(EXAMPLEDIR)" "$(DESTDIR)$(PREFIX)/share/nirvana" 2>/dev/null; true

dist: cargo ## static programs, pages, completions and examples as one tarball in DISTDIR (dist), with SHA256SUMS
	$(if $(GIVEN),,RUSTFLAGS="$(DIST_FLAGS)" $(CARGO) build --profile $(DIST_PROFILE) --target $(DIST_TARGET) $(TOOLS:%=--package %))
	packaging/dist.sh "$(if $(GIVEN),$(BUILT),$(DIST_BUILT))" "$(DISTDIR)" $(firstword $(subst -, ,$(DIST_TARGET)))

deb: $(if $(GIVEN),cargo,all) ## a package for Debian and its kin in DISTDIR (dist); DEB_REVISION and DEB_MAINTAINER may be set
	packaging/deb.sh "$(BUILT)" "$(DISTDIR)"

demo: all ## all of them around a small app under load: reloads, rotations, a kill -9, a bad deploy, a worker that spins; ends 1 if a request or a log line is lost
	$(CARGO) build --release --package kit --bins
	"$(TARGET)/release/demo" "$(TARGET)/release" tests/apps

soak-logs: ## logreopen for hours: 10^8 lines over 1,000 rotations by the real logrotate, none lost
	tests/setup.sh
	SOAK_LINES=100000000 SOAK_ROTATIONS=1000 $(CARGO) test --release --package logreopen --test logreopen_soak -- --nocapture

soak: cargo ## the whole chain under load for HOURS (1; 0.033 is two minutes), with random faults (SEED repeats them)
	tests/setup.sh
	SOAK_HOURS="$(or $(HOURS),1)" SOAK_SEED="$(or $(SEED),$(shell date +%s))" $(CARGO) test --release --package spawnwork --test soak -- --nocapture

fuzz: cargo ## random bytes where others' come in, for MINUTES (10) at each of the targets, or for those of ONLY=proc,events (cargo-fuzz)
	@command -v cargo-fuzz >/dev/null 2>&1 || { echo "make: NOT CHECKED: anything: cargo-fuzz is missing (cargo install --locked cargo-fuzz, and rustup toolchain install nightly)" >&2; exit 2; }
	@for target in $(or $(subst $(COMMA), ,$(ONLY)),$(basename $(notdir $(wildcard tests/fuzz/fuzz_targets/*.rs)))); do \
		$(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $$target -- -max_total_time=$$(( $(or $(MINUTES),10) * 60 )) -timeout=20 -print_final_stats=1 || exit; done

miri: cargo ## every access to memory looked at, in the tests that ask the system for nothing, with a part of each corpus of tests/fuzz
	@$(CARGO) +nightly miri --version >/dev/null 2>&1 || { echo "make: NOT CHECKED: anything: Miri is missing (rustup toolchain install nightly --component miri,rust-src)" >&2; exit 2; }
	MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +nightly miri test --package common --lib -- $(PURE)
	MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +nightly miri test --package fuzzed --test fuzz_replay

audit: cargo ## licences, duplicates, sources and known faults of all dependencies (cargo-deny)
	@command -v cargo-deny >/dev/null 2>&1 || { echo "make: NOT CHECKED: anything: cargo-deny is missing (cargo install --locked cargo-deny)" >&2; exit 2; }
	cargo-deny check bans licenses sources
	@cargo-deny fetch >/dev/null 2>&1 || { echo "make: NOT CHECKED: known faults (advisories): https://github.com/RustSec/advisory-db cannot be fetched; licences, duplicates and sources are as they should be" >&2; exit 1; }
	cargo-deny check advisories

systemd: ## the units of examples/systemd once more, under Debian 13's systemd (257): notify-reload and its store
	tests/setup.sh systemd
	NIRVANA_SYSTEMD_ROOT="$${NIRVANA_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/nirvana-tests}/debian-13" \
		$(CARGO) test --package spawnwork --test examples_systemd -- --nocapture

bench: all ## ours and each peer that is installed, side by side: tables, TSV and pictures in target/bench; ONLY=reload,idle takes some
	tests/setup.sh bench
	ONLY="$(ONLY)" $(CARGO) run --quiet --release --package bench --bin bench

clean: cargo ## remove what was built
	$(CARGO) clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | while IFS='	' read -r target meaning; do printf '%-10s %s\n' "$$target" "$$meaning"; done

cargo:
	@command -v $(CARGO) >/dev/null 2>&1 || { echo "make: cargo is missing: install Rust 1.85 or newer (https://rustup.rs, or the package rustup)" >&2; exit 2; }
