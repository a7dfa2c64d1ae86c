#!/usr/bin/env bash
# Installs what the tests use of other registries. Quick, and silent, if all of it is there.
#
# usage: tools/test-packages.sh            target/venv: the Python packages of tests/requirements.txt, and the source of one
#        tools/test-packages.sh NAME...    also, in target/clients, the packages of tests/clients/NAME (node, privacyidea), the
#                                          programs of tests/clients/NAME (rust), and that of examples/NAME (sign-in)
#
# All are made again when their list, Python or Node changes.

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

for name in "$@"; do
    [[ $name == @(node|privacyidea|rust|sign-in) ]] || die "usage: tools/test-packages.sh [node|privacyidea|rust|sign-in]..."
done
wanted=" $* "
is_wanted() { [[ $wanted == *" $1 "* ]]; }

# fresh FOLDER ORIGIN: true if the folder was made from that.
fresh() { [ "$(cat "$1/origin" 2>/dev/null)" = "$2" ]; }

python=$(system_python)
origin="$VENV: $("$python" --version) $(cksum <tests/requirements.txt)" # its programs name the folder
if ! fresh "$VENV" "$origin"; then
    say "installing the Python packages of tests/requirements.txt into target/venv"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
    pip() { "$VENV/bin/pip" "$1" --quiet --disable-pip-version-check "${@:2}"; }
    pip install --requirement tests/requirements.txt
    # Its source distribution has files of hardware tokens, which are not ours to copy.
    pip download --no-deps --no-binary python-pskc --dest "$VENV/source" "$(grep '^python-pskc==' tests/requirements.txt)"
    mkdir "$VENV/python-pskc"
    tar -x -f "$VENV"/source/python_pskc-*.tar.gz -C "$VENV/python-pskc" --strip-components 1
    echo "$origin" >"$VENV/origin"
fi

install_node() {
    local origin
    origin="$(node --version) $(cat tests/clients/node/package*.json tests/clients/node/schema.prisma | cksum)"
    ! fresh "$CLIENTS/node" "$origin" || return 0
    say "installing the packages of tests/clients/node into target/clients"
    rm -rf "$CLIENTS/node"
    mkdir -p "$CLIENTS/node"
    cp tests/clients/node/package*.json tests/clients/node/schema.prisma "$CLIENTS/node"
    (cd "$CLIENTS/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    # Prisma downloads an engine for migrations, unless one is named. The client is generated without it.
    (cd "$CLIENTS/node" && CHECKPOINT_DISABLE=1 PRISMA_HIDE_UPDATE_MESSAGE=1 PRISMA_SCHEMA_ENGINE_BINARY=$(type -P true) \
        node_modules/.bin/prisma generate --no-hints --schema schema.prisma >/dev/null)
    echo "$origin" >"$CLIENTS/node/origin"
}

install_privacyidea() {
    local origin
    origin="$CLIENTS/privacyidea: $("$python" --version) $(cksum <tests/clients/privacyidea/requirements.txt)"
    ! fresh "$CLIENTS/privacyidea" "$origin" || return 0
    say "installing the packages of tests/clients/privacyidea into target/clients"
    rm -rf "$CLIENTS/privacyidea"
    "$python" -m venv "$CLIENTS/privacyidea"
    # Without what it requires: most of that is for its server.
    "$CLIENTS/privacyidea/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement tests/clients/privacyidea/requirements.txt
    echo "$origin" >"$CLIENTS/privacyidea/origin"
}

# build MANIFEST FOLDER OPTION...
build() { cargo build --locked --quiet --manifest-path "$1/Cargo.toml" --target-dir "$2" "${@:3}"; }

! is_wanted node || install_node
! is_wanted privacyidea || install_privacyidea
# Not the test of sqlx, which needs a server: tests/run-clients compiles it.
! is_wanted rust || build tests/clients/rust "$CLIENTS/rust" --features sqlx --bins --test sign_in --test drivers
! is_wanted sign-in || build examples/sign-in "$SIGN_IN"
