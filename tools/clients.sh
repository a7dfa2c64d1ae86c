#!/usr/bin/env bash
# Makes target/clients: the packages of tests/clients/node, again when their list or Node changes, and the programs of
# tests/clients/rust. For the tests that use them.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

origin="$(node --version) $(cat tests/clients/node/package*.json | cksum)"
if [ "$(cat "$CLIENTS/node/origin" 2>/dev/null)" != "$origin" ]; then
    say "installing the packages of tests/clients/node into target/clients"
    rm -rf "$CLIENTS/node"
    mkdir -p "$CLIENTS/node"
    cp tests/clients/node/package*.json "$CLIENTS/node"
    (cd "$CLIENTS/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    echo "$origin" >"$CLIENTS/node/origin"
fi

cargo build --locked --quiet --all-targets --manifest-path tests/clients/rust/Cargo.toml --target-dir "$CLIENTS/rust"
