#!/usr/bin/env bash
# Makes target/venv: the Python packages of tests/requirements.txt, made again when that file or Python changes.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

python=$(system_python)
origin="$("$python" --version) $(cksum <tests/requirements.txt)"
if [ "$(cat "$VENV/origin" 2>/dev/null)" != "$origin" ]; then
    say "installing the Python packages of tests/requirements.txt into target/venv"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check --requirement tests/requirements.txt
    echo "$origin" >"$VENV/origin"
fi
