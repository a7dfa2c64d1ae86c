#!/usr/bin/env bash
# Asks cargo-deny what the extension is built from, by the rules of deny.toml.
#
# usage: tools/deny.sh            licenses, bans and sources: from Cargo.lock and the crates alone
#        tools/deny.sh advisories known vulnerabilities, from the RustSec database, which is fetched from the web

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

VERSION=0.20.2

if [ "$("$TOOLS/bin/cargo-deny" --version 2>/dev/null)" != "cargo-deny $VERSION" ]; then
    say "building cargo-deny $VERSION into target/tools (about a minute)"
    # Without optimization: it builds in a third of the time, and has two seconds of work.
    CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-deny --version "$VERSION" --locked --force --debug --root "$TOOLS"
fi
[ $# -gt 0 ] || set -- licenses bans sources
exec cargo deny --locked check "$@"
