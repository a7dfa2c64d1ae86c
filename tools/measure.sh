#!/usr/bin/env bash
# Measures the extension on servers that it starts, and writes reports into bench/.
#
# usage: tools/measure.sh bench            costs, beside the bare statements; SUBJECT=name: only that one
#        tools/measure.sh soak             what grows or breaks in MINUTES (default 30); no report if under ten
#        tools/measure.sh constant-time    whether time reveals what was compared

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

case ${1:-} in
    bench) command=(bench/run.py ${SUBJECT:+"$SUBJECT"}) ;;
    soak) command=(bench/soak.py) ;;
    constant-time)
        command=(bench/constant_time.py target/constant-time/release/examples/constant_time)
        cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir target/constant-time --example constant_time
        ;;
    *) die "usage: tools/measure.sh bench|soak|constant-time" ;;
esac
tools/test-packages.sh
exec "$VENV/bin/python" "${command[@]}"
