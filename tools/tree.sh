#!/usr/bin/env bash
# Makes a private copy of the PostgreSQL installation that PG_CONFIG names: programs copied, all else linked,
# with its own folders for extension files and libraries. PostgreSQL finds those relative to its own
# programs, so an extension can be installed there, and a server started, without touching the system.
#
# usage: tools/tree.sh [TREE]...      default: the release tree

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

# link_entries FOLDER [NAME]: in the tree, a real folder with a link for every entry of the system's,
# but for NAME and for a pg_totp of the system's own.
link_entries() {
    local entry
    mkdir -p "$tree$1"
    for entry in "$1"/*; do
        case ${entry##*/} in
            pg_totp* | "${2:-}") ;;
            *) [ -L "$tree$1/${entry##*/}" ] || ln -s "$entry" "$tree$1/" ;;
        esac
    done
}

# The system's extensions and libraries as they are now: a package may have come or gone since the tree was made.
link_extensions() {
    local lib extension
    lib=$("$PG_CONFIG" --pkglibdir)
    extension=$("$PG_CONFIG" --sharedir)/extension
    find "$tree$lib" "$tree$extension" -maxdepth 1 -xtype l -delete
    link_entries "$lib"
    link_entries "$extension"
}

make_tree() {
    local bin share lib folder
    bin=$("$PG_CONFIG" --bindir)
    share=$("$PG_CONFIG" --sharedir)
    lib=$("$PG_CONFIG" --pkglibdir)

    mkdir -p "$tree$bin"
    cp -a "$bin/." "$tree$bin"
    link_entries "$lib"
    link_entries "$share" extension
    link_entries "$share/extension"
    # Libraries that its programs find relative to themselves, as those of a Python package do.
    for folder in $(ldd "$bin/psql" "$bin/initdb" | sed -n 's|.*=> \(.*/\.\./.*\)/[^/]*$|\1|p' | sort -u); do
        folder=$(realpath "$folder")
        mkdir -p "$(dirname "$tree$folder")"
        [ -e "$tree$folder" ] || ln -s "$folder" "$tree$folder"
    done
    for folder in $("$PG_CONFIG" --includedir --pkgincludedir --includedir-server); do
        [ -e "$tree$folder" ] && continue
        mkdir -p "$(dirname "$tree$folder")"
        ln -s "$folder" "$tree$folder"
    done

    for folder in --bindir --sharedir --pkglibdir --includedir-server; do
        [ "$("$tree$bin/pg_config" "$folder")" = "$tree$("$PG_CONFIG" "$folder")" ] ||
            die "$tree$bin/pg_config $folder does not answer with the tree's own folder: $("$tree$bin/pg_config" "$folder")"
    done
}

[ -x "$PG_CONFIG" ] || die "$PG_CONFIG is missing: run make setup"
if [ "$TREE_HOME" != "$ROOT/target" ]; then
    say "$SERVER_USER cannot reach $ROOT: the copy of the PostgreSQL tree goes to $TREE_HOME"
    mkdir -p "$TREE_HOME"
    if [ -L "$TREE_HOME" ] || [ "$(stat -c %u "$TREE_HOME")" -ne "$(id -u)" ]; then
        die "$TREE_HOME belongs to someone else"
    fi
fi

# What a tree is a copy of: the path, and the version and date of the server, which change with a minor release.
origin="$PG_CONFIG $("$PG_CONFIG" --version) $(stat -c %Y "$("$PG_CONFIG" --bindir)/postgres")"
for tree in "${@:-$TREE}"; do
    if [ "$(cat "$tree/origin" 2>/dev/null)" != "$origin" ]; then
        rm -rf "$tree"
        make_tree
        echo "$origin" >"$tree/origin"
    fi
    link_extensions
done
