#!/usr/bin/env bash
# Measures the extension on servers that it starts. A report each; nothing depends on them.
#
# usage: tools/measure.sh bench            beside the bare statements: bench/results.md; SUBJECT=name, only that section
#        tools/measure.sh soak             for MINUTES (default 30), what grows or breaks: bench/soak.md, from ten minutes on
#        tools/measure.sh constant-time    whether time reveals what was compared: bench/constant_time.md

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
