#!/usr/bin/env bash
# Checks the crates that the extension is built from, and lists them.
#
# usage: tools/dependencies.sh check         licenses, bans and sources, by the rules of deny.toml; needs no web
#        tools/dependencies.sh advisories    known vulnerabilities: gets the RustSec database from the web
#        tools/dependencies.sh licenses      print the crates that the library is linked from, and their license texts
#        tools/dependencies.sh sbom          write them to target/sbom/pg_totp-VERSION.cdx.json, in CycloneDX

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

VERSION=0.20.2 # of cargo-deny

# deny CHECK...
deny() {
    if [ "$("$TOOLS/bin/cargo-deny" --version 2>/dev/null)" != "cargo-deny $VERSION" ]; then
        say "building cargo-deny $VERSION into target/tools (about a minute)"
        # Without optimization: it builds in a third of the time, and has two seconds of work.
        CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-deny --version "$VERSION" --locked --force --debug --root "$TOOLS"
    fi
    cargo deny --locked check "$@"
}

# linked [OPTION]...: what the library is linked from. Macros run in the compiler, and build scripts before it.
linked() { cargo tree --locked --package pg_totp --edges normal,no-proc-macro "${PG_FEATURES[@]}" "$@"; }

# list FOLDER: writes "name version|license" of each crate, but for those of this checkout, into FOLDER/list.
list() {
    linked --prefix none --no-dedupe --format '{p}|{l}' | grep -v '(/' | LC_ALL=C sort -u >"$1/list"
    [ -s "$1/list" ] || die "cargo tree names no crate"
}

# The same text is printed once, below the names of all crates that come with it.
licenses() {
    local crate license name text texts sum sources
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/texts" "$work/crates"
    list "$work"
    while IFS='|' read -r crate license; do
        name=${crate/ v/ }
        sources=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"${crate/ v/-}")
        texts=()
        for text in "${sources[0]}"/{LICEN[CS]E,COPYING,UNLICENSE,license}*; do
            # If there is a choice, it is not Apache's: the text of that is left out.
            if [ -f "$text" ] && { [[ $text != *[Aa][Pp][Aa][Cc][Hh][Ee]* ]] || [[ $license != *MIT* ]]; }; then texts+=("$text"); fi
        done
        printf '%s (%s)%s\n' "$name" "$license" "$([ ${#texts[@]} -gt 0 ] || echo ', which comes without a text')" >>"$work/crates/list"
        for text in "${texts[@]}"; do
            sum=$(cksum <"$text" | tr -c '0-9\n' _)
            cp "$text" "$work/texts/$sum"
            printf '%s, ' "$name" >>"$work/crates/$sum"
        done
    done <"$work/list"

    echo "The library is linked from these crates, and from the standard library of $(rustc --version) (MIT OR Apache-2.0):"
    echo
    cat "$work/crates/list"
    for text in "$work"/texts/*; do
        printf '\n--- %s\n\n' "$(sed 's/, $//' "$work/crates/${text##*/}")"
        cat "$text"
    done
}

sbom() {
    local file
    file=target/sbom/pg_totp-$(version).cdx.json
    mkdir -p target/sbom
    linked --prefix depth --no-dedupe --format '|{p}|{l}' |
        "$(system_python)" tools/sbom.py "$(rustc -vV | sed -n 's/^host: //p')" "$(source_date)" >"$file.new"
    mv "$file.new" "$file"
    echo "$file"
}

case ${1:-} in
    check) deny licenses bans sources ;;
    advisories) deny advisories ;;
    licenses) licenses ;;
    sbom) sbom ;;
    *) die "usage: tools/dependencies.sh check|advisories|licenses|sbom" ;;
esac
