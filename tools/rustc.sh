#!/bin/sh
# Runs the compiler for a release build, without the folders of this machine in what it makes: the same sources then give
# the same library in every folder and for every user.
#
# usage: RUSTC_WRAPPER=tools/rustc.sh cargo ...
#
# Not by RUSTFLAGS: cargo builds everything again if those differ, and they would differ in each folder.

for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
    set -- "$@" "--remap-path-prefix=$registry=/crates"
done
exec "$@" "--remap-path-prefix=$(cd "$(dirname "$0")/.." && pwd -P)=/pg_totp"
