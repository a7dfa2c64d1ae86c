#!/usr/bin/env bash
# Inside tools/chroot.sh: adds the packages of an older Debian, and installs a package made there, with its PostgreSQL.
#
# usage: tools/older-release.sh RELEASE DEB

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

[ -n "${IN_CHROOT:-}" ] || die "this changes the system that it runs on: tools/chroot.sh NEWER_RELEASE tools/older-release.sh …"
[ -e "${2:-}" ] || die "usage: tools/older-release.sh RELEASE DEB"

sed -n 's|^deb \([^ ]*\) .*|deb \1 '"$1"' main\ndeb \1-security '"$1"'-security main|p' /etc/apt/sources.list \
    >"/etc/apt/sources.list.d/$1.list"
apt-get update -q
mkdir -p /etc/postgresql-common/createcluster.d
echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/pg_totp.conf
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "./$2"
