#!/usr/bin/env bash
# Runs a command beside a throw-away server that has the release build of pg_totp and a master key file.
# The server and all its files are removed when the command ends, however it ends.
#
# usage: tools/with-server.sh                     an interactive psql, with the extension in its database
#        tools/with-server.sh COMMAND [ARG]...
#
# The command sees PGHOST, PGPORT, PGUSER, PGDATABASE, the server's programs first in PATH, and
#   SERVER_DIR    a folder of the server's user: data/, log, master.key and the socket

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

[ -x "$BIN/postgres" ] || die "there is no build yet: run make build"

SERVER_DIR=$(mktemp -d /tmp/pg_totp.XXXXXX) # short: a socket's path may have 107 bytes

clean_up() {
    trap '' INT TERM HUP
    if [ -e "$SERVER_DIR/data/postmaster.pid" ]; then
        as_server "$BIN/pg_ctl" -D "$SERVER_DIR/data" -m fast -s -w stop ||
            as_server "$BIN/pg_ctl" -D "$SERVER_DIR/data" -m immediate -s -w stop
    fi
    rm -rf "$SERVER_DIR"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if [ "$(id -u)" -eq 0 ]; then
    chown "$SERVER_USER:" "$SERVER_DIR"
fi
as_server "$BIN/initdb" --pgdata="$SERVER_DIR/data" --username=postgres --auth=trust \
    --data-checksums --no-locale --encoding=UTF8 --no-sync >/dev/null

# The key file: 64 hex characters, readable by the server's user alone, outside the data directory.
# shellcheck disable=SC2016 # the inner shell expands it
as_server sh -c 'umask 077 && openssl rand -hex 32 >"$1"' sh "$SERVER_DIR/master.key"
as_server tee -a "$SERVER_DIR/data/postgresql.conf" >/dev/null <<CONF

# Added by tools/with-server.sh
listen_addresses = ''
unix_socket_directories = '$SERVER_DIR'
fsync = off
totp.key_file = '$SERVER_DIR/master.key'
CONF
if ! as_server "$BIN/pg_ctl" -D "$SERVER_DIR/data" -l "$SERVER_DIR/log" -s -w start; then
    cat "$SERVER_DIR/log" >&2
    die "the server did not start"
fi

session() {
    psql -X -q -c 'CREATE EXTENSION pg_totp'
    cat <<'HINTS'
A throw-away server with pg_totp, removed when you leave (\q). To try:
    SELECT * FROM totp_enroll('alice') \gset
    \setenv SECRET :secret
    \set code `oathtool --totp -b "$SECRET"`
    SELECT totp_verify('alice', :'code');
HINTS
    # Its own job has the terminal to itself: Ctrl-C cancels a query there, and nothing else.
    set -m
    psql -X
}

export SERVER_DIR PGHOST=$SERVER_DIR PGPORT=5432 PGUSER=postgres PGDATABASE=postgres PATH=$BIN:$PATH
unset PGSERVICE PGPASSWORD PGOPTIONS PGSSLMODE PGHOSTADDR PGCLIENTENCODING
[ $# -gt 0 ] || set -- session
"$@"
