#!/usr/bin/env bash
# Fuzzes the parsers of the pure crates with cargo-fuzz, each target for SECONDS_EACH (default 60), on stable Rust.
#
# usage: tools/fuzz.sh [TARGET]...      default: all of fuzz/fuzz_targets/
#
# New inputs are in target/fuzz/corpus/; copy those worth keeping to fuzz/corpus/, which make test replays.
# An input that breaks a property is left in fuzz/artifacts/, and the status is 1.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

VERSION=0.13.2

if ! cargo fuzz --version >/dev/null 2>&1; then
    say "building cargo-fuzz $VERSION into target/tools"
    cargo install cargo-fuzz --version "$VERSION" --locked --root "$TOOLS"
fi
export RUSTC_BOOTSTRAP=1 # the sanitizer is a nightly option; the compiler is the one that builds the extension
# Debian's Rust comes without the sanitizer. The parsers have no unsafe code.
sanitizer=none
if compgen -G "$(rustc --print target-libdir)/librustc*_rt.asan.a" >/dev/null; then sanitizer=address; fi

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for program in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$program" .rs)")
    done
fi

failed=()
for target in "${targets[@]}"; do
    found=target/fuzz/corpus/$target
    mkdir -p "$found"
    longest=9000
    [ "$target" != qr ] || longest=300 # drawing a large one takes a second
    say "$target"
    cargo fuzz run --sanitizer "$sanitizer" --features libfuzzer --target-dir target/fuzz/build "$target" "$found" "fuzz/corpus/$target" -- \
        -max_total_time="${SECONDS_EACH:-60}" -max_len="$longest" -timeout=10 -print_final_stats=1 2>"target/fuzz/$target.log" || failed+=("$target")
    grep -E '^(stat::(number_of_executed_units|new_units_added|average_exec)|SUMMARY|thread|assertion|  left|  right)' "target/fuzz/$target.log" || true
done
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}; see fuzz/artifacts/ and target/fuzz/*.log"
