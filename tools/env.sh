#!/usr/bin/env bash
# What the other scripts share, which source it: where things are, and how to say and run things.
#
# usage: tools/env.sh                     print the values as KEY=value lines
#        tools/env.sh COMMAND [ARG]...    run a command with the project's pgrx, for debug builds:
#                                         tools/env.sh cargo clippy, check, doc, expand ...
#
# A plain cargo would look for ~/.pgrx, and build pgrx's bindings again after each make.
#
# PG_CONFIG in the environment names the PostgreSQL installation to build for (default: the first one in pgrx.toml).

set -euo pipefail
umask 022 # the server's user must be able to read what we build and install

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$ROOT"

say() { printf '==> %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

version() { sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1; }

# The date of what is packed: that of the last commit. Outside of a git checkout, that of Cargo.toml.
source_date() { echo "${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.toml)}"; }

# --- The PostgreSQL installation -------------------------------------------------

# "pg15 /usr/lib/postgresql/15/bin/pg_config": label and path of pgrx.toml's first entry.
pgrx_toml_entry() { sed -n 's/^ *\(pg[0-9][0-9]*\) *= *"\(.*\)".*/\1 \2/p' pgrx.toml | head -n 1; }

PG_CONFIG=${PG_CONFIG:-$(pgrx_toml_entry | cut -d ' ' -f 2)}
if command -v "$PG_CONFIG" >/dev/null; then
    PG_CONFIG=$("$PG_CONFIG" --bindir)/pg_config # Debian's /usr/bin/pg_config is a wrapper
    PG_MAJOR=$("$PG_CONFIG" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
elif [[ $PG_CONFIG =~ /postgresql/([0-9]+)/bin/pg_config$ ]]; then
    PG_MAJOR=${BASH_REMATCH[1]} # Debian's path, not installed yet: make setup does that
else
    die "PG_CONFIG=$PG_CONFIG: no such program"
fi
PG_LABEL=pg$PG_MAJOR
# shellcheck disable=SC2034 # used by the scripts that source this one
PG_FEATURES=(--no-default-features --features "$PG_LABEL")
export PG_CONFIG

# --- The user that throw-away servers run as: PostgreSQL refuses root -------------

if [ "$(id -u)" -ne 0 ]; then
    SERVER_USER=$(id -un)
elif id postgres >/dev/null 2>&1; then
    SERVER_USER=postgres
else
    SERVER_USER=nobody
fi

# as_server COMMAND...: run it as that user, in a folder that it may enter, and in a clean environment:
# the caller's RUST_BACKTRACE, TOTP_ENCRYPTION_KEY or PG* must not reach the server.
as_server() {
    local command=(env -i "PATH=$PATH" HOME=/ LC_ALL=C "$@")
    if [ "$(id -u)" -eq 0 ]; then
        command=(setpriv "--reuid=$SERVER_USER" "--regid=$(id -gn "$SERVER_USER")" --init-groups -- "${command[@]}")
    fi
    (cd / && exec "${command[@]}")
}

# --- The project's own folders ---------------------------------------------------

export PGRX_HOME=$ROOT/target/pgrx
TOOLS=$ROOT/target/tools
VENV=$ROOT/target/venv       # tools/test-packages.sh makes both
CLIENTS=$ROOT/target/clients
# Links to Debian's Rust, if another one that is too old comes first in PATH: tools/setup.sh makes them.
DEBIAN_RUST=$ROOT/target/rust
PATH=$TOOLS/bin:$DEBIAN_RUST:$PATH
export PATH
SIGN_IN=$ROOT/target/sign-in # the build of examples/sign-in

# Private copies of the PostgreSQL tree (tools/tree.sh), under target/ or, if the server's user
# cannot get there (a checkout below /root), in a folder of root's own in /var/tmp.
TREE_HOME=$ROOT/target
if ! as_server test -x "$ROOT" || { [ -d target ] && ! as_server test -x "$TREE_HOME"; }; then
    TREE_HOME=/var/tmp/pg_totp-$(printf %s "$ROOT" | cksum | cut -d ' ' -f 1)
fi
TREE=$TREE_HOME/pgtree-$PG_MAJOR           # takes the release build: demo, psql, regress and cluster tests
TEST_TREE=$TREE_HOME/pgtree-$PG_MAJOR-test # takes the debug build that holds the #[pg_test] functions
BIN=$TREE$(dirname "$PG_CONFIG")

# use_tree TREE: cargo, pgrx's build script and cargo-pgrx all take that tree's pg_config.
# Release builds use TREE and debug builds TEST_TREE, always, or pgrx would make its bindings again at each change.
use_tree() { export PGRX_PG_CONFIG_PATH=$1$PG_CONFIG; }

# build.rs has the linker flag by which the schema section stays in the library. cargo-pgrx would give it as RUSTFLAGS,
# and each dependency would be compiled twice, for cargo test and for its own build.
export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

# Debian's own Python: the one whose venv module make setup installs.
system_python() { if [ -x /usr/bin/python3 ]; then echo /usr/bin/python3; else command -v python3; fi; }

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    if [ $# -gt 0 ]; then
        tools/tree.sh "$TEST_TREE"
        use_tree "$TEST_TREE"
        exec "$@"
    fi
    printf '%s=%s\n' ROOT "$ROOT" PG_CONFIG "$PG_CONFIG" SERVER_USER "$SERVER_USER" \
        TREE "$TREE" TEST_TREE "$TEST_TREE" BIN "$BIN" VENV "$VENV" CLIENTS "$CLIENTS" SIGN_IN "$SIGN_IN"
fi
