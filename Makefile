# pg_totp. Each target is a small script in tools/ or tests/; this file only names them.
#
# PG_CONFIG=/path/to/pg_config   the PostgreSQL to build for (default: the first one in pgrx.toml)

# Given in the environment or on make's command line, these reach the scripts.
export PG_CONFIG PART TEST FOLDERS LOAD SUBJECT DESTDIR MINUTES SECONDS_EACH

.PHONY: help all setup tree build demo psql test bench soak fuzz constant-time advisories install uninstall installcheck package dist clean

help:
	@echo 'make setup         install what is missing: Debian packages, cargo-pgrx'
	@echo 'make demo          a guided tour on a throw-away server'
	@echo 'make psql          psql on a throw-away server, for trying things out'
	@echo 'make test          every test there is   (PART=cluster TEST=replay: one part, some tests; LOAD=light: smaller loads)'
	@echo 'make bench         measure it beside the bare statements   (SUBJECT=loop: one subject)'
	@echo 'make soak          run it for 30 minutes and report what grows or breaks   (MINUTES=10: shorter)'
	@echo 'make fuzz          run a fuzzer on each parser for a minute   (SECONDS_EACH=600: longer)'
	@echo 'make constant-time measure whether time reveals what was compared'
	@echo 'make advisories    check its crates for known vulnerabilities (needs the web)'
	@echo 'make build         build the extension'
	@echo 'make install       install it into the PostgreSQL that PG_CONFIG names   (DESTDIR=...)'
	@echo 'make installcheck  run the SQL tests on the running server that PGHOST, PGPORT, PGUSER name'
	@echo 'make uninstall     remove it from there'
	@echo 'make package       make the Debian package for that PostgreSQL, in target/package'
	@echo 'make dist          make the distribution for PGXN, from what is committed'
	@echo 'make clean         remove what was built'
	@echo
	@echo 'PG_CONFIG=/path/to/pg_config picks the PostgreSQL installation (default: pgrx.toml).'

setup:
	@tools/setup.sh test

tree:
	@tools/setup.sh
	@tools/tree.sh

build:
	@tools/setup.sh
	@tools/build.sh

all: build # what pgxn calls

demo: build
	@tools/demo.sh

psql: build
	@tools/with-server.sh

test: setup
	@tests/run

bench: setup build
	@tools/measure.sh bench

soak: setup build
	@tools/measure.sh soak

fuzz: setup
	@tools/fuzz.sh

constant-time: setup build
	@tools/measure.sh constant-time

advisories: setup
	@tools/dependencies.sh advisories

install:
	@tools/install.sh install

uninstall:
	@tools/install.sh uninstall

installcheck:
	@tests/run-regress installcheck

package:
	@tools/setup.sh package
	@tools/package.sh

dist:
	@tools/dist.sh

clean:
	@tools/build.sh clean
