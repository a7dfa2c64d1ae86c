#!/usr/bin/env bash
# Copies the built extension into the PostgreSQL that PG_CONFIG names, or removes it.
#
# usage: tools/install.sh install|copy|uninstall
#
# install builds first if this user owns the checkout. "make build && sudo make install" works too: root only copies,
# and needs neither cargo nor any right to the checkout. copy never builds. DESTDIR is put before every path, as with PGXS.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

[[ ${1:-} == @(install|copy|uninstall) ]] || die "usage: tools/install.sh install|copy|uninstall"
[ -x "$PG_CONFIG" ] || die "$PG_CONFIG: no such program"
extension_dir=$("$PG_CONFIG" --sharedir)/extension
library_dir=$("$PG_CONFIG" --pkglibdir)

# Without the rights, nothing is done by half.
writable() {
    local folder=$1
    until [ -e "$folder" ]; do folder=$(dirname "$folder"); done
    [ -w "$folder" ]
}
if ! writable "${DESTDIR:-}$extension_dir" || ! writable "${DESTDIR:-}$library_dir"; then
    die "no right to write to ${DESTDIR:-}$extension_dir: make build, then sudo make $1 PG_CONFIG=$PG_CONFIG"
fi

if [ "$1" = uninstall ]; then
    rm -fv "${DESTDIR:-}$extension_dir"/pg_totp{.control,--*.sql} "${DESTDIR:-}$library_dir/pg_totp.so"
    exit
fi

if [ "$1" = install ] && [ -O "$ROOT" ]; then
    tools/setup.sh
    tools/build.sh
elif [ ! -e "$TREE/origin" ]; then
    TREE=$ROOT/target/pgtree-$PG_MAJOR # built by a user whose checkout the server's user cannot reach
fi
if [ "$(cut -d ' ' -f 1 "$TREE/origin" 2>/dev/null)" != "$PG_CONFIG" ] || [ ! -e "$TREE$library_dir/pg_totp.so" ]; then
    die "nothing is built for $PG_CONFIG: run make build PG_CONFIG=$PG_CONFIG first, as yourself"
fi

mkdir -p "${DESTDIR:-}$extension_dir" "${DESTDIR:-}$library_dir"
version=$(sed -n "s/^default_version = '\(.*\)'$/\1/p" "$TREE$extension_dir/pg_totp.control")
# The scripts that make this version and lead to it, not those of earlier releases, which are there for tests.
install -v -m 644 "$TREE$extension_dir"/pg_totp{.control,"--$version.sql",--*--*.sql} "${DESTDIR:-}$extension_dir/"
install -v -m 755 "$TREE$library_dir/pg_totp.so" "${DESTDIR:-}$library_dir/"
