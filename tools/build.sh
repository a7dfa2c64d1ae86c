#!/usr/bin/env bash
# Builds the extension (release) and installs it into the private copy of the PostgreSQL tree.
#
# usage: tools/build.sh               the sources of this checkout
#        tools/build.sh fault PATCH   a copy of them with a fault, in a separate tree, for the test that must see the
#                                     fault. Prints the folder of that tree's programs. Nothing else may load it.
#        tools/build.sh clean         remove what was built, except target/tools: cargo-pgrx takes minutes to build

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

unset SOURCE_DATE_EPOCH # of what is packed, and not for cargo, or it may build again

# Where the tree in $1 keeps the extension's control file and scripts, and its library.
extension_dir() { printf '%s\n' "$1$("$PG_CONFIG" --sharedir)/extension"; }
library_dir() { printf '%s\n' "$1$("$PG_CONFIG" --pkglibdir)"; }

# sort_script FILE: the functions in the order of the source files and their lines. cargo-pgrx writes them in another order
# each time. Its own first lines and the tables stay first, then the other SQL files, and the rights last.
sort_script() {
    perl -0777 -i -ne '
        my ($head, $tables, @blocks) = split m{^(?=/\* <begin connected objects> \*/$)}m;
        my $rights = pop @blocks;
        my %place;
        for (@blocks) {
            m{^-- (src/\S+):(\d+)$}m or die "no place in the sources: $_";
            $place{$_} = sprintf "%d %s %06d", $1 ne "src/lib.rs", $1, $2;
        }
        $head =~ s{^The ordering of items is not stable.*\n}{The functions are in the order of the sources.\n}m;
        print $head, $tables, (sort { $place{$a} cmp $place{$b} } @blocks), $rights;
    ' "$1"
}

build() {
    tools/tree.sh "$TREE"
    use_tree "$TREE"
    say "building pg_totp for PostgreSQL $PG_MAJOR (the first time takes a minute or two)"
    started=$(mktemp "$TREE/started.XXXXXX")
    trap 'rm -f "$started"' EXIT
    # cargo speaks on stderr
    RUSTC_WRAPPER=$ROOT/tools/rustc.sh cargo pgrx install --release --pg-config "$PGRX_PG_CONFIG_PATH" "${PG_FEATURES[@]}" >/dev/null
    sort_script "$(extension_dir "$TREE")/pg_totp--$(version).sql"

    # The scripts of earlier releases, and what their control files said, for the tests of upgrades; make install does not
    # copy them.
    install -m 644 sql/install/pg_totp--* "$(extension_dir "$TREE")/"

    # Scripts of an earlier build that this one no longer has.
    find "$(extension_dir "$TREE")" -name 'pg_totp*' ! -newer "$started" -delete
}

SOURCES=(src crates sql build.rs Cargo.toml Cargo.lock pg_totp.control)

build_fault() {
    local patch=$1 copy origin
    copy=$TREE-$(basename "$patch" .patch)
    tools/tree.sh "$copy"
    origin=$(cat "$copy/origin" && find "${SOURCES[@]}" "$patch" -type f -print0 | sort -z | xargs -0 cksum)
    if [ "$(cat "$copy/built-from" 2>/dev/null)" != "$origin" ]; then
        build_patched "$patch" "$copy"
        echo "$origin" >"$copy/built-from"
    fi
    echo "$copy$(dirname "$PG_CONFIG")"
}

# build_patched PATCH TREE: in a copy of the release build's folder, without our own crate. So the dependencies are not
# built again, and no artifact of this build can be taken for one of the release. For them to count as up to date, they
# must be asked for as cargo-pgrx does, with the same pg_config. The SQL is that of the release build. Without
# optimization, which takes half a minute.
build_patched() {
    say "building pg_totp with $1, for the tests"
    work=$(mktemp -d "$ROOT/target/fault.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/sources" "$work/built"
    cp -r "${SOURCES[@]}" "$work/sources"
    patch --directory="$work/sources" --strip=1 --fuzz=0 <"$1" >&2 ||
        die "$1 no longer applies: write it again for the sources as they are now"
    if [ -d target/release ]; then
        cp -a target/release "$work/built/"
        rm -rf "$work"/built/release/{libpg_totp*,deps/libpg_totp*,.fingerprint/pg_totp-*}
    fi
    use_tree "$TREE"
    CARGO_TARGET_DIR=$work/built cargo rustc --manifest-path "$work/sources/Cargo.toml" --locked --lib --release \
        "${PG_FEATURES[@]}" -- -C opt-level=0

    find "$(extension_dir "$2")" -name 'pg_totp*' -delete
    install -m 644 "$(extension_dir "$TREE")"/pg_totp* "$(extension_dir "$2")/"
    install -m 755 "$work/built/release/libpg_totp.so" "$(library_dir "$2")/pg_totp.so"
}

clean() {
    [ ! -d target ] || find target -mindepth 1 -maxdepth 1 ! -name tools -exec rm -rf {} +
    if [ "$TREE_HOME" != "$ROOT/target" ] && [ -O "$TREE_HOME" ]; then
        rm -rf "$TREE_HOME"
    fi
}

case "${1:-} $#" in
    ' 0') build ;;
    'fault 2') build_fault "$2" ;;
    'clean 1') clean ;;
    *) die "usage: tools/build.sh [fault PATCH | clean]" ;;
esac
