#!/usr/bin/env bash
# Shows what pg_totp does, on a throw-away server, with oathtool as the authenticator app.
# Checks every answer: an unexpected one ends the demo with an error.
#
# usage: tools/demo.sh

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

[ -n "${SERVER_DIR:-}" ] || {
    say "starting a throw-away PostgreSQL $PG_MAJOR (as user $SERVER_USER, on a unix socket in a temporary folder)"
    exec tools/with-server.sh "$ROOT/tools/demo.sh"
}

note() { printf '\n-- %s\n' "$*"; }

# run SQL: show the statement as a psql session would, run it, show the answer and keep it in $answer.
run() {
    printf 'demo=# %s;\n' "$1"
    answer=$(psql -X -d demo -v ON_ERROR_STOP=1 -c "$1")
    printf '%s\n' "$answer"
}

# expect COLUMN VALUE: the first row of the last answer has this value in that column.
expect() {
    local got
    got=$(awk -F '|' -v column="$1" '
        { for (i = 1; i <= NF; i++) gsub(/^ +| +$/, "", $i) }
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == column) at = i }
        NR == 3 { print $at }' <<<"$answer")
    [ "$got" = "$2" ] || die "expected $1 to be '$2', got '$got'"
}

# secret_of ANSWER: the secret in the answer of totp_enroll.
secret_of() { awk -F '|' 'NR == 3 { gsub(/ /, "", $1); print $1 }' <<<"$1"; }

# app SECRET [WHEN]: what the user's authenticator app shows; kept in $code.
app() {
    local command=(oathtool --totp --base32 ${2:+"--now=$2"} "$1")
    printf '$ oathtool --totp --base32 %s%s\n' "${2:+--now="'$2' "}" "$1"
    code=$("${command[@]}")
    printf '%s\n' "$code"
}

psql -X -q -c 'CREATE DATABASE demo'

note 'The master key: one file, made by "openssl rand -hex 32", mode 0600, outside the data directory.'
run 'SHOW totp.key_file'
run 'CREATE EXTENSION pg_totp'

note 'Enroll alice. The secret is shown once, for her authenticator app.'
run "SELECT * FROM totp_enroll('alice', issuer => 'Demo')"
old=$(secret_of "$answer")

note 'Or she scans it: the QR code of that URI, in the terminal.'
uri=$(awk -F '|' 'NR == 3 { gsub(/ /, "", $2); print $2 }' <<<"$answer")
echo 'demo=# \pset format unaligned'
printf "demo=# SELECT totp_qr_text('%s');\n" "$uri"
psql -X -A -t -d demo -v ON_ERROR_STOP=1 -c "SELECT totp_qr_text('$uri')"

note 'Sign in with the code that the app (here oathtool) shows now.'
app "$old"
run "SELECT totp_verify('alice', '$code')"
expect totp_verify t

note 'The same code again: refused, a code counts once.'
run "SELECT totp_verify('alice', '$code')"
expect totp_verify f
run "SELECT accepted, reason FROM totp_check('alice', '$code')"
expect reason replayed

note 'A new phone: enroll again. Its first good code is not enough, since alice has MFA now.'
run "SELECT * FROM totp_enroll('alice', issuer => 'Demo')"
new=$(secret_of "$answer")
app "$new"
first=$code
run "SELECT accepted, reason FROM totp_check_confirm('alice', '$first')"
expect reason proof_required

note 'With a code of the old phone, that nobody has used, as proof, the new secret is the one that counts.'
app "$old" 'now + 30 seconds'
run "SELECT totp_confirm('alice', '$first', proof => '$code')"
expect totp_confirm t

note 'The old secret is dead: its code is not even a used one. That of the new one is accepted.'
run "SELECT reason FROM totp_check('alice', '$code')"
expect reason wrong
app "$new" 'now + 30 seconds'
run "SELECT totp_verify('alice', '$code')"
expect totp_verify t

note 'What is stored, and what a dump holds: secrets only in sealed form.'
run "SELECT user_id, device, algorithm, left(sealed::text, 34) || '...' AS sealed FROM totp.secrets"
dump=$SERVER_DIR/demo.sql
pg_dump -d demo >"$dump"
grep -q 'COPY totp.secrets' "$dump" || die "the dump does not hold the secrets table"
dump_hex=$(od -An -v -tx1 "$dump" | tr -d ' \n')
for secret in "$old" "$new"; do
    hex=$(oathtool --totp --base32 --verbose "$secret" | sed -n 's/^Hex secret: //p')
    raw=$(printf '%s' "$hex" | tr 'A-F' 'a-f')
    [ ${#raw} -eq 40 ] || die "oathtool did not tell the secret in hex"
    if grep -qi -e "$secret" -e "$raw" "$dump" || grep -q "$raw" <<<"$dump_hex"; then
        die "a secret is in the dump in clear"
    fi
done
echo "\$ pg_dump demo | grep -i -e $new -e $raw"
echo '(nothing: neither secret is in the dump, as base32, hex or raw bytes)'

note 'Done. "make psql" opens the same set-up for trying things out.'
