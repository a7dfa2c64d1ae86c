#!/usr/bin/env bash
# Builds the extension with the feature fault_no_flush, into its own copy of the PostgreSQL tree: for the tests that
# must see what it breaks. Nothing else may load it.
#
# usage: tools/build-fault.sh           build, where the sources changed since the last time
#        tools/build-fault.sh where     print the folder of that tree's programs

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

tree=$TREE-fault
if [ "${1:-}" = where ]; then
    echo "$tree$(dirname "$PG_CONFIG")"
    exit
fi

tools/tree.sh "$tree"
origin=$(cat "$tree/origin" && find src crates sql build.rs Cargo.toml Cargo.lock pg_totp.control -type f -print0 | sort -z | xargs -0 cksum)
[ "$(cat "$tree/built-from" 2>/dev/null)" != "$origin" ] || exit 0

# In a copy of the release build's folder, without our own crate: so the dependencies are not built again, and no artefact
# of this build can be taken for one of the release. To be taken for up to date they must be asked for as cargo-pgrx does,
# with the same pg_config. The SQL is that of the release build. Not optimised: that takes half a minute.
say "building pg_totp with a fault, for the tests"
use_tree "$TREE"
CARGO_TARGET_DIR=$(mktemp -d "$ROOT/target/fault.XXXXXX")
export CARGO_TARGET_DIR
trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT
if [ -d target/release ]; then
    cp -a target/release "$CARGO_TARGET_DIR/"
    rm -rf "$CARGO_TARGET_DIR"/release/{libpg_totp*,deps/libpg_totp*,.fingerprint/pg_totp-*}
fi
cargo rustc --lib --release --no-default-features --features "$PG_LABEL fault_no_flush" -- -C opt-level=0
find "$tree$("$PG_CONFIG" --sharedir)/extension" -name 'pg_totp*' -delete
install -m 644 "$TREE$("$PG_CONFIG" --sharedir)"/extension/pg_totp* "$tree$("$PG_CONFIG" --sharedir)/extension/"
install -m 755 "$CARGO_TARGET_DIR/release/libpg_totp.so" "$tree$("$PG_CONFIG" --pkglibdir)/pg_totp.so"
echo "$origin" >"$tree/built-from"
