#!/usr/bin/env bash
# Measures whether time tells what was compared, and writes bench/constant_time.md.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

tools/venv.sh
cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir target/constant-time --example constant_time
exec "$VENV/bin/python" bench/constant_time.py target/constant-time/release/examples/constant_time
