#!/usr/bin/env bash
# Prints the crates that the library is linked from, and the texts of their licences, each once. For make package.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/texts" "$work/crates"

cargo tree --locked --package pg_totp --edges normal "${PG_FEATURES[@]}" --prefix none --format '{p}|{l}' |
    sed 's/ (\*)$//; s/ (proc-macro)//' | grep -v '(/' | LC_ALL=C sort -u >"$work/list"
[ -s "$work/list" ] || die "cargo tree names no crate"

while IFS='|' read -r crate licence; do
    name=${crate/ v/ }
    sources=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"${crate/ v/-}")
    texts=()
    for text in "${sources[0]}"/{LICEN[CS]E,COPYING,UNLICENSE,license}*; do
        # Where there is a choice, it is not Apache's: the text of that is left out.
        if [ -f "$text" ] && { [[ $text != *[Aa][Pp][Aa][Cc][Hh][Ee]* ]] || [[ $licence != *MIT* ]]; }; then texts+=("$text"); fi
    done
    printf '%s (%s)%s\n' "$name" "$licence" "$([ ${#texts[@]} -gt 0 ] || echo ', which comes without a text')" >>"$work/crates/list"
    for text in "${texts[@]}"; do
        sum=$(cksum <"$text" | tr -c '0-9\n' _)
        cp "$text" "$work/texts/$sum"
        printf '%s, ' "$name" >>"$work/crates/$sum"
    done
done <"$work/list"

echo 'The library is linked from these crates, and from the standard library of Rust (MIT OR Apache-2.0):'
echo
cat "$work/crates/list"
for text in "$work"/texts/*; do
    printf '\n--- %s\n\n' "$(sed 's/, $//' "$work/crates/${text##*/}")"
    cat "$text"
done
