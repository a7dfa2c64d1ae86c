#!/usr/bin/env bash
# Makes the distribution for PGXN, target/pg_totp-VERSION.zip, from what is committed. The same commit gives the same
# bytes.
#
# usage: tools/dist.sh

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

git rev-parse --verify --quiet HEAD >/dev/null || die "this is no git checkout: the distribution is made from a commit"
[ -z "$(git status --porcelain)" ] || say "what is not committed is left out"

name=pg_totp-$(git show HEAD:META.json | sed -n 's/^   "version": "\(.*\)",$/\1/p')
mkdir -p target
# The times in a zip are local ones: those of the commit, in UTC.
TZ=UTC git archive --format=zip -9 --prefix="$name/" --output="target/$name.zip" HEAD
printf '%s\n' "target/$name.zip"
