# For users: `make demo`, `make install`. For developers: `make check`, `make test`, `make bench`,
# `make soak`. Each installs the Debian packages that it needs and finds missing.

PREFIX ?= /usr/local

# Where mount(8) looks for the programs that mount, wherever sqlrepl itself is.
SBINDIR ?= /sbin

# What is installed, and what builds it.
PROGRAM ?= target/release/sqlrepl
CARGO ?= cargo

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
	cargo test --locked --lib --bins -- --skip contract

conformance: build-needs
	cargo test --locked --lib -- contract
	cargo test --locked --test it -- contract

# On directories, then with all replicas in S3; the second run leaves out what is no story of a
# store, and what is on S3 in any case.
NOT_ON_S3 = --skip tidy:: --skip demo:: --skip start:: --skip s3 --skip store_calls:: \
    --skip listing::version
stories: needs
	cargo test --locked --test it -- --skip contract --test-threads $(STORIES)
	SQLREPL_STORE=s3 cargo test --locked --test it -- $(NOT_ON_S3) --test-threads $(STORIES)

# The same stories with ten times the commits, kills and downtimes, and ten times the simulated
# schedules; SOAK=100 for a night.
SOAK ?= 10
soak: needs
	SQLREPL_SOAK=$(SOAK) cargo test --locked --lib -- simulation simulated
	SQLREPL_SOAK=$(SOAK) cargo test --locked --test it -- --test-threads $(STORIES)
	SQLREPL_SOAK=$(SOAK) SQLREPL_STORE=s3 cargo test --locked --test it -- $(NOT_ON_S3) \
	    --test-threads $(STORIES)

bench: needs
	cargo test --locked --release --test it bench::table -- --exact --ignored --nocapture

UNITS = sqlrepl.service sqlrepl@.service sqlrepl-mount@.service
install: build-needs
	$(CARGO) build --locked --release
	install -D -m 755 $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/sqlrepl
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(SBINDIR)
	for unit in $(UNITS); do \
	    sed 's|/usr/local/bin|$(PREFIX)/bin|g' contrib/$$unit \
	        > $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit; \
	done
	sed 's|/usr/local/bin|$(PREFIX)/bin|g' contrib/mount.sqlrepl \
	    > $(DESTDIR)$(SBINDIR)/mount.sqlrepl
	chmod 755 $(DESTDIR)$(SBINDIR)/mount.sqlrepl
	ln -sf mount.sqlrepl $(DESTDIR)$(SBINDIR)/mount.fuse.sqlrepl

needs:
	@contrib/needs build run

build-needs:
	@contrib/needs build
