#!/usr/bin/env bash
# Builds the extension (release) and installs it into the private copy of the PostgreSQL tree.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

tools/tree.sh "$TREE"
use_tree "$TREE"
say "building pg_totp for PostgreSQL $PG_MAJOR (the first time takes a minute or two)"
started=$(mktemp "$TREE/started.XXXXXX")
trap 'rm -f "$started"' EXIT
cargo pgrx install --release --pg-config "$PGRX_PG_CONFIG_PATH" "${PG_FEATURES[@]}" >/dev/null # cargo speaks on stderr

# The scripts of earlier releases, for the tests of upgrades; make install leaves them here.
install -m 644 sql/install/pg_totp--*.sql "$TREE$("$PG_CONFIG" --sharedir)/extension/"

# Scripts of an earlier build that this one no longer has.
find "$TREE$("$PG_CONFIG" --sharedir)/extension" -name 'pg_totp*' ! -newer "$started" -delete
