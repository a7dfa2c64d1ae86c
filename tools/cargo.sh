#!/usr/bin/env bash
# cargo with the project's own pgrx set-up, for the debug profile: tools/cargo.sh clippy, check, test, doc, expand ...
# A plain cargo would look for ~/.pgrx, and build pgrx's bindings again after each make.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

tools/tree.sh "$TEST_TREE"
use_tree "$TEST_TREE"
exec cargo "$@"
