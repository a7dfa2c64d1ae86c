#!/usr/bin/env bash
# Runs the benchmarks on its own servers and writes bench/results.md; SUBJECT=name one of them and its section.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

tools/venv.sh
exec "$VENV/bin/python" bench/run.py ${SUBJECT:+"$SUBJECT"}
