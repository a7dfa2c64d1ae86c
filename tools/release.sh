#!/usr/bin/env bash
# Makes what is published for a version, in target/release-VERSION: packages, the distribution, the image, the list of
# crates, SHA256SUMS and its signature. From what is committed.
#
# usage: tools/release.sh                 all of it
#        tools/release.sh sign FOLDER     only the sums of the files in FOLDER, and their signature. Files that have a sum
#                                         there already must be as it says
#
# RELEASE_KEY          the SSH key to sign with, one that packaging/allowed_signers names: the private key, or the public
#                      one if ssh-agent has the private
# PG_CONFIG            the one PostgreSQL to make packages for; default: each one with header files, here and, as root,
#                      in the Debians of tools/chroot.sh
# SOURCE_DATE_EPOCH    the date of the files; default: that of the commit

chosen=${PG_CONFIG:-}
# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

[ -n "${RELEASE_KEY:-}" ] || die "RELEASE_KEY is not set: name the SSH key that signs the release"
[ -r "$RELEASE_KEY" ] || die "RELEASE_KEY=$RELEASE_KEY: no such file"

# verify FOLDER: as who gets the release will do it.
verify() {
    ssh-keygen -q -Y verify -f packaging/allowed_signers -I pg_totp -n pg_totp-release -s "$1/SHA256SUMS.sig" <"$1/SHA256SUMS"
}

# sign FOLDER
sign() {
    [ ! -e "$1/SHA256SUMS.sig" ] || verify "$1" || die "SHA256SUMS.sig in $1 is not the signature of SHA256SUMS"
    if [ -e "$1/SHA256SUMS" ]; then
        (cd "$1" && sha256sum --check --quiet --strict SHA256SUMS) || die "the files in $1 are not those of SHA256SUMS"
    fi
    say "new in $1:" "$(cd "$1" && find . -type f ! -name 'SHA256SUMS*' -printf '%P\n' | LC_ALL=C sort |
        grep -vxFf <(cut -c 67- SHA256SUMS 2>/dev/null) | paste -sd ' ' || true)"
    rm -f "$1/SHA256SUMS.sig"
    (cd "$1" && find . -type f ! -name SHA256SUMS -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum >SHA256SUMS)
    ssh-keygen -q -Y sign -f "$RELEASE_KEY" -n pg_totp-release "$1/SHA256SUMS"
    if ! verify "$1"; then
        rm "$1/SHA256SUMS.sig"
        die "packaging/allowed_signers does not name the key $RELEASE_KEY"
    fi
}

# postgres_in FOLDER: the pg_config of each PostgreSQL in a Debian that can be built for.
postgres_in() {
    local config major
    for config in "$1"/usr/lib/postgresql/*/bin/pg_config; do
        major=${config#"$1"/usr/lib/postgresql/}
        if [ -e "$1/usr/include/postgresql/${major%%/*}/server/postgres.h" ]; then echo "${config#"$1"}"; fi
    done
}

# keep TARGET COMMAND...: the file that the command names last, target/..., is part of the release. It is in TARGET.
keep() {
    local target=$1 file
    shift
    file=$("$@" | tail -n 1)
    file=$target/${file#target/}
    [ ! -e "$out/${file##*/}" ] || die "made twice: ${file##*/}"
    cp "$file" "$out/"
}

# packages_for PG_CONFIG TARGET COMMAND...: what make, called by the command, makes in TARGET for that PostgreSQL. An image
# can be mounted since 18.
packages_for() {
    local kind kinds=(package)
    [[ ! $1 =~ /postgresql/(1[89]|[2-9][0-9])/ ]] || kinds+=(image)
    for kind in "${kinds[@]}"; do
        keep "$2" "${@:3}" make --no-print-directory "$kind" "PG_CONFIG=$1" "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH"
    done
}

packages() {
    local config system release
    if [ -n "$chosen" ]; then
        packages_for "$PG_CONFIG" target env
        return
    fi
    for config in $(postgres_in ''); do
        packages_for "$config" target env
    done
    for system in target/debian/*/build; do
        [ -d "$system" ] || continue
        release=$(basename "$(dirname "$system")")
        for config in $(postgres_in "${system%/build}"); do
            packages_for "$config" "$(tools/chroot.sh --target "$release")" tools/chroot.sh "$release"
        done
    done
}

# Without the tag it is a rehearsal, as in tests/run-release. With it, it must be as the tag says.
tagged() {
    local tag
    tag=v$(version)
    if ! git rev-parse --verify --quiet "refs/tags/$tag" >/dev/null; then
        say "there is no tag $tag: do not publish this"
        return
    fi
    [ "$(git rev-parse "refs/tags/$tag^{commit}")" = "$1" ] || die "HEAD is not the tag $tag"
    grep -qE "^## ${tag#v} \([0-9]{4}-[0-9]{2}-[0-9]{2}\)$" CHANGELOG.md || die "CHANGELOG.md has no date for ${tag#v}"
}

clean() { [ -z "$(git status --porcelain)" ]; }

release() {
    local head
    head=$(git rev-parse --verify --quiet HEAD) || die "this is no git checkout: a release is made from a commit"
    clean || die "there are changes that are not committed: a release is made from a commit"
    tagged "$head"
    SOURCE_DATE_EPOCH=$(source_date)
    export SOURCE_DATE_EPOCH
    out=target/release-$(version)
    rm -rf "$out"
    mkdir -p "$out"
    packages
    keep target tools/dist.sh
    keep target tools/dependencies.sh sbom
    { clean && [ "$(git rev-parse HEAD)" = "$head" ]; } || die "the checkout has changed meanwhile: nothing is signed"
    sign "$out"
    echo "$out"
}

case "${1:-} $#" in
    ' 0') release ;;
    'sign 2') sign "$2" ;;
    *) die "usage: tools/release.sh [sign FOLDER]" ;;
esac
