#!/usr/bin/env bash
# Makes the Debian package for the PostgreSQL that PG_CONFIG names and the Debian that this runs on:
# target/package/postgresql-NN-pg-totp_VERSION-1_ARCH.deb. The same sources, compiler, PostgreSQL and Debian give the same
# bytes, in every folder and for every user: tests/run-release.
#
# usage: tools/package.sh
#
# PACKAGE_FOLDER           where to make it instead; it must be absolute
# DEBFULLNAME, DEBEMAIL    the maintainer, as Debian's own tools take them
# SOURCE_DATE_EPOCH        the date of the files; default: that of the last commit, else of Cargo.toml

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

version=$(version)-1
arch=$(dpkg --print-architecture)
package=postgresql-$PG_MAJOR-pg-totp
maintainer="${DEBFULLNAME:-the pg_totp developers} <${DEBEMAIL:-pg_totp@localhost}>"
date=$(source_date)
unset SOURCE_DATE_EPOCH # not for cargo, or it may build again

out=${PACKAGE_FOLDER:-$ROOT/target/package}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/$package
mkdir -p "$out" "$work/debian" "$doc" "$root/DEBIAN"

# --- Files: what make install installs, stripped of what only a debugger reads, and the documents ---------------------

DESTDIR=$root tools/install.sh install
library=$root$("$PG_CONFIG" --pkglibdir)/pg_totp.so
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$library"
chmod 644 "$library"

cp README.md SECURITY.md "$doc"
cp -r docs examples "$doc"
rm -r "$doc"/examples/*/tests # they need the checkout
find "$doc" -name __pycache__ -prune -exec rm -r {} +
gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
gzip -9n >"$doc/changelog.Debian.gz" <<CHANGELOG
pg-totp ($version) unstable; urgency=medium

  * Version ${version%-*}: see changelog.gz.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$date")
CHANGELOG
cp packaging/copyright "$doc"
tools/dependencies.sh licenses >"$work/crates"
gzip -9n <"$work/crates" >"$doc/crates.gz"

# --- What it needs: the libraries that it is linked with, and the PostgreSQL that it was built with or newer ----------

printf 'Source: pg-totp\nMaintainer: %s\n\nPackage: %s\nArchitecture: any\n' "$maintainer" "$package" >"$work/debian/control"
# Symbols of the server are in no library: no warning of those.
libraries=$(cd "$work" && dpkg-shlibdeps --warnings=0 -O "$library" | sed -n 's/^shlibs:Depends=//p')
[ -n "$libraries" ] || die "dpkg-shlibdeps found no library: $library"
minor=$("$PG_CONFIG" --version | cut -d ' ' -f 2 | sed 's/[a-z]/~&/') # 19rc1 is before 19.0: Debian writes 19~rc1
# As Debian counts it, in kB; what a folder takes differs between file systems.
size=$(find "$root/usr" -type f -printf '%s\n' -o -printf '1\n' | awk '{ size += int(($1 + 1023) / 1024) } END { print size }')

cat >"$root/DEBIAN/control" <<CONTROL
Package: $package
Source: pg-totp
Version: $version
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $size
Depends: postgresql-$PG_MAJOR (>= $minor), $libraries
Section: database
Priority: optional
Description: TOTP multi-factor authentication for PostgreSQL $PG_MAJOR
 pg_totp keeps TOTP secrets (RFC 6238) encrypted in the database and checks
 one-time codes with plain SQL, so that a backend in any language signs users
 in with one SELECT. A code is accepted once, and a wrong one is counted
 before it is answered, even if the caller rolls back.
 .
 CREATE EXTENSION pg_totp is the installation: no service, no preload, no
 restart.
CONTROL

(cd "$root" && find usr -type f -printf '%P\0' | LC_ALL=C sort -z | sed -z 's|^|usr/|' | xargs -0 md5sum) >"$root/DEBIAN/md5sums"

# --- The package -----------------------------------------------------------------

find "$root" -type d -exec chmod 755 {} +
find "$root" -type f -exec chmod 644 {} +
find "$root" -exec touch --date="@$date" {} + # dpkg-deb would leave older dates as they are
rm -f "$out/${package}_"*.deb
deb=$out/${package}_${version}_$arch.deb
SOURCE_DATE_EPOCH=$date dpkg-deb --root-owner-group -Zxz --build "$root" "$deb" >/dev/null
echo "${deb#"$ROOT/"}"
