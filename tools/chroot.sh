#!/usr/bin/env bash
# Runs a command in a folder that holds a Debian of another release, and with it another PostgreSQL. Needs root.
#
# usage: tools/chroot.sh RELEASE COMMAND [ARG]...          in a folder that is kept, to build and test in
#        tools/chroot.sh --fresh RELEASE COMMAND [ARG]...  in a copy of the new system, thrown away after the command
#
# RELEASE is bookworm (PostgreSQL 15), trixie (17), forky (18), sid (19, out of experimental). The command starts in
# /pg_totp, which is this checkout, read-only, except /pg_totp/target, which belongs to the folder; outside it is
# $(tools/chroot.sh --target RELEASE). The kept folder sees the crates that cargo has fetched here, and the toolchains of
# rustup; --fresh is a new system with make, and nothing else.
# The mounts, and whatever the command leaves running, are in namespaces that go with this script, however it ends. So
# "rm -rf target" is safe.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

SYSTEMS=$ROOT/target/debian
usage="usage: tools/chroot.sh [--fresh] RELEASE COMMAND [ARG]..., or --target RELEASE"

fresh=
case ${1:-} in
    --fresh) fresh=yes && shift ;;
    --target) echo "$SYSTEMS/${2:?$usage}/build" && exit ;;
esac
[ $# -gt 1 ] || die "$usage"
release=$1
shift

if [ "$(id -u)" -ne 0 ]; then
    die "a Debian of another release needs root (debootstrap, mount, chroot): run it as root or with sudo"
fi
unshare --mount --pid --fork true 2>/dev/null ||
    die "no right to mount here: a container must have CAP_SYS_ADMIN for a Debian of another release"
command -v debootstrap >/dev/null || die "debootstrap is missing: run tools/setup.sh versions"

child=''
discard=''
end() {
    trap '' INT TERM HUP
    if [ -n "$child" ]; then
        kill -KILL "$child" || true # unshare ignores other signals, and takes the rest with it
        wait "$child" 2>/dev/null || true
    fi
    [ -z "$discard" ] || rm -rf "$discard"
}
trap end EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# isolated SCRIPT [ARG]...: bash runs the script among its own mounts and processes, and is their init.
isolated() {
    local status=0
    unshare --mount --propagation private --pid --fork --kill-child -- bash -euo pipefail -c "$1" bash "${@:2}" <&0 &
    child=$!
    wait "$child" || status=$?
    child=
    return "$status"
}

# --- The new system: as debootstrap makes it, with the release's security updates and this machine's authorities ------

base=$SYSTEMS/$release.base
if [ ! -e "$base" ]; then
    say "making a Debian $release in target/debian (about two minutes)"
    script=/usr/share/debootstrap/scripts/$release
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid # a release newer than this debootstrap
    rm -rf "$base.new"
    mkdir -p "$base.new"
    isolated 'debootstrap --variant=minbase --include=ca-certificates,make "$@"' "$release" "$base.new" "" "$script" \
        >"$base.log" 2>&1 || die "debootstrap failed, see $base.log"
    # more_of SUFFIX SUITE: the same mirror's.
    more_of() { sed -n "s|^\(deb [^ ]*\) .*|\1$1 $2 main|p" "$base.new/etc/apt/sources.list" >"$base.new/etc/apt/sources.list.d/$2.list"; }
    if [ "$release" = sid ]; then # which needs no security updates. Nothing but PostgreSQL 19 is taken from experimental.
        more_of '' experimental
        printf 'Package: src:postgresql-19\nPin: release a=experimental\nPin-Priority: 500\n' >"$base.new/etc/apt/preferences.d/pg_totp"
    else
        more_of -security "$release-security"
    fi
    # apt there gets packages as apt here does: the same proxy and checks.
    apt-config dump | grep -E '^Acquire::(Check-|https?::)' >"$base.new/etc/apt/apt.conf.d/80pg_totp" || true
    cp -a /usr/local/share/ca-certificates/. "$base.new/usr/local/share/ca-certificates/"
    echo 'APT::Keep-Downloaded-Packages "false";' >"$base.new/etc/apt/apt.conf.d/81pg_totp" # two gigabytes in each system
    echo force-unsafe-io >"$base.new/etc/dpkg/dpkg.cfg.d/pg_totp" # nothing here must outlive a power cut
    # No program of the new system is started by its installation.
    printf '#!/bin/sh\nexit 101\n' >"$base.new/usr/sbin/policy-rc.d"
    chmod 755 "$base.new/usr/sbin/policy-rc.d"
    # shellcheck disable=SC2016 # the inner shell expands it
    isolated 'mount --rbind /dev "$1/dev"
        mount -t proc proc "$1/proc"
        chroot "$1" sh -c "update-ca-certificates && apt-get update -q && apt-get clean"' "$base.new" >>"$base.log" 2>&1 ||
        die "the new system does not work, see $base.log"
    mv "$base.new" "$base"
fi

# --- The folder to run in ---------------------------------------------------------------------------------------

if [ -n "$fresh" ]; then
    system=$(mktemp -d "$SYSTEMS/$release.XXXXXX")
    discard=$system
    cp -a "$base/." "$system"
else
    system=$SYSTEMS/$release
    if [ ! -e "$system" ]; then
        rm -rf "$system.new"
        cp -a "$base" "$system.new"
        mkdir -p "$system.new/build"
        # A newer Debian runs what an older one built: cargo-pgrx takes minutes. The crates are made again, by another Rust.
        [ ! -d target/tools ] || cp -a target/tools "$system.new/build"
        mv "$system.new" "$system"
    fi
fi
mkdir -p "$system/pg_totp" "$system/build"
cp -L /etc/resolv.conf "$system/etc/resolv.conf"

shared=()
if [ -z "$fresh" ]; then
    for folder in "${CARGO_HOME:-$HOME/.cargo}" "${RUSTUP_HOME:-$HOME/.rustup}"; do
        [ -d "$folder" ] || continue
        mkdir -p "$system$folder"
        shared+=("$folder")
    done
fi

# The command does not see variables that name folders, servers and installations of this system.
# The seed and the amounts of the tests (tests/cluster/support/amounts.py) stay.
unset TMPDIR LIBCLANG_PATH VIRTUAL_ENV
for name in "${!PG@}"; do
    [[ $name == PG_TOTP_* ]] || unset "$name"
done
export IN_CHROOT=$release LC_ALL=C.UTF-8 PATH=${CARGO_HOME:-$HOME/.cargo}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck disable=SC2016 # the inner shell expands it
isolated '
    system=$1 checkout=$2
    shift 2
    mount --rbind /dev "$system/dev"
    mount -t proc proc "$system/proc"
    mount --bind "$checkout" "$system/pg_totp"
    mount -o remount,bind,ro "$system/pg_totp"
    mount --bind "$system/build" "$system/pg_totp/target"
    while [ "$1" != -- ]; do
        mount --bind "$1" "$system$1"
        shift
    done
    shift
    chroot "$system" sh -c "cd /pg_totp && exec \"\$@\"" sh "$@"' "$system" "$ROOT" "${shared[@]}" -- "$@"
