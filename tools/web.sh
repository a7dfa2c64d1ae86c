#!/usr/bin/env bash
# Starts examples/sign-in on a throw-away server, with two accounts, one of them with a device. Ctrl-C ends it, and nothing stays.
#
# usage: tools/web.sh

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

[ -n "${SERVER_DIR:-}" ] || {
    say "building examples/sign-in"
    cargo build --locked --quiet --manifest-path examples/sign-in/Cargo.toml --target-dir "$SIGN_IN"
    say "starting a throw-away PostgreSQL $PG_MAJOR (as user $SERVER_USER, on a unix socket in a temporary folder)"
    exec tools/with-server.sh "$ROOT/tools/web.sh"
}

psql -X -q -v ON_ERROR_STOP=1 >/dev/null <<'SQL'
CREATE DATABASE app;
\connect app
CREATE SCHEMA mfa;
CREATE EXTENSION pg_totp SCHEMA mfa;
\i examples/sign-in/schema.sql
SQL
cp "$SIGN_IN/debug/sign-in" "$SERVER_DIR" # the server's user may not get to the checkout

# account NAME DESK WHAT: a member with a random password.
account() {
    local password hash
    password=$(openssl rand -hex 6)
    hash=$("$SERVER_DIR/sign-in" hash <<<"$password")
    psql -X -q -d app -v ON_ERROR_STOP=1 -v name="$1" -v hash="$hash" -v desk="$2" <<<"INSERT INTO app.member VALUES (:'name', :'hash', :'desk')"
    printf '%s, %-24s password: %s\n' "$1" "$3" "$password"
}
account alice false 'a user,'
account dora true 'who works at the desk,'
# Who works at the desk cannot set up the first device: examples/sign-in/README.md.
secret=$(openssl rand 20 | base32)
psql -X -q -d app -v ON_ERROR_STOP=1 -v secret="$secret" >/dev/null \
    <<<"SELECT mfa.totp_import('dora', :'secret', issuer => 'Example', device => 'phone', confirmed => true)"
cat <<TEXT
alice sets up a device first, in an authenticator app. dora has one: add its secret to the app, or call
  oathtool --totp -b $secret
files: $SERVER_DIR
Ctrl-C ends it.
TEXT
database="host=$SERVER_DIR dbname=app"
as_server "WEB_DATABASE=$database user=web" "DESK_DATABASE=$database user=desk" "$SERVER_DIR/sign-in"
