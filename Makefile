# For users: `make demo`, `make install`. For developers: `make check`, `make test`, `make bench`,
# `make soak`. Each installs the Debian packages that it needs and finds missing.

PREFIX ?= /usr/local

# Most of a story is waiting, so more of them run at a time than there are cores; those that
# measure time wait until they are alone.
STORIES ?= 4

.PHONY: demo test check conformance stories bench soak install needs build-needs

demo: needs
	contrib/demo

test: needs check conformance stories

check: build-needs
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	cargo test --locked --lib -- --skip contract

conformance: build-needs
	cargo test --locked --lib -- contract

stories: needs
	cargo test --locked --test it -- --test-threads $(STORIES)

# The same stories with ten times the commits, kills and downtimes; SOAK=100 for a night.
SOAK ?= 10
soak: needs
	SQLREPL_SOAK=$(SOAK) cargo test --locked --test it -- --test-threads $(STORIES)

bench: needs
	cargo test --locked --release --test it bench::table -- --exact --ignored --nocapture

install: build-needs
	cargo build --locked --release
	install -D -m 755 target/release/sqlrepl $(DESTDIR)$(PREFIX)/bin/sqlrepl
	install -D -m 644 contrib/sqlrepl@.service \
	    $(DESTDIR)$(PREFIX)/lib/systemd/system/sqlrepl@.service
	install -D -m 644 contrib/sqlrepl.service \
	    $(DESTDIR)$(PREFIX)/lib/systemd/system/sqlrepl.service

needs:
	@contrib/needs build run

build-needs:
	@contrib/needs build
