#!/usr/bin/env bash
# An interactive psql on a throw-away server with pg_totp in it. The server goes when psql ends.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

[ -n "${SERVER_DIR:-}" ] || exec tools/with-server.sh "$ROOT/tools/psql.sh"

psql -X -q -c 'CREATE EXTENSION pg_totp'
cat <<'HINTS'
A throw-away server with pg_totp in it, gone when you leave (\q). To try:
    SELECT * FROM totp_enroll('alice') \gset
    \setenv SECRET :secret
    \set code `oathtool --totp -b "$SECRET"`
    SELECT totp_verify('alice', :'code');
HINTS

# Its own job has the terminal to itself: Ctrl-C cancels a query there, and nothing else.
set -m
psql -X
