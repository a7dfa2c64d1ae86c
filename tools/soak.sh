#!/usr/bin/env bash
# Runs the extension for MINUTES (default 30) on its own server and writes bench/soak.md, unless it was under ten.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

tools/venv.sh
exec "$VENV/bin/python" bench/soak.py
