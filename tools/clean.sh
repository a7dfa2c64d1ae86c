#!/usr/bin/env bash
# make clean: removes what was built, but for cargo-pgrx (target/tools), which takes minutes to build.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

if [ -d target ]; then
    find target -mindepth 1 -maxdepth 1 ! -name tools -exec rm -rf {} +
fi
if [ "$TREE_HOME" != "$ROOT/target" ] && [ -O "$TREE_HOME" ]; then
    rm -rf "$TREE_HOME"
fi
