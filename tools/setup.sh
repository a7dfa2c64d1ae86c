#!/usr/bin/env bash
# Installs what is missing: Rust, Debian packages, cargo-pgrx and its settings.
# Quick if all of it is there, and then silent, unless Rust is taken by its path: then it says which one.
#
# usage: tools/setup.sh            what building, the demo and psql need
#        tools/setup.sh test       also what the tests and benchmarks need
#        tools/setup.sh package    also what make package needs
#        tools/setup.sh sbom       also what make sbom needs
#        tools/setup.sh release    also what make release and tests/run-release need
#        tools/setup.sh versions   also what a Debian of another release needs

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

mkdir -p target

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed, and there is no sudo, for: $*"
    fi
}

has() { command -v "$1"; }

install_packages() {
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 "$@"
}

# --- Rust: the first one in PATH, or Debian's if that is too old ----------------------

wanted=$(sed -n 's/^rust-version *= *"\(.*\)".*/\1/p' Cargo.toml | head -n 1)
# new_enough VERSION
new_enough() { [ "$(printf '%s\n' "$wanted" "$1" | sort -V | head -n 1)" = "$wanted" ]; }
# rust_version RUSTC
rust_version() { "$1" --version 2>/dev/null | cut -d ' ' -f 2; }

# Names the packages of a Rust of Debian's that is new enough: the one of the release, or the one that security updates have
# brought for web browsers.
debian_rust() {
    local packages
    for packages in 'rustc cargo rustfmt rust-clippy' 'rustc-web cargo-web rustfmt-web rust-web-clippy'; do
        if new_enough "$(apt-cache policy "${packages%% *}" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')"; then
            echo "$packages"
            return
        fi
    done
    return 1
}

install_debian_rust() {
    local packages
    [ "$(has rustup)" != /usr/bin/rustup ] || # a package that is in the way of the others
        die "Rust $wanted or newer is needed: rustup toolchain install stable && rustup default stable"
    local rustup='install rustup (see rustup.rs), then run: rustup toolchain install stable && rustup default stable'
    has apt-get >/dev/null || die "Rust $wanted or newer is needed, and this is no Debian system: $rustup"
    debian_rust >/dev/null || as_root apt-get update -q -o APT::Update::Error-Mode=any ||
        die "Rust $wanted or newer is needed, and the package lists could not be read: see above, or $rustup"
    debian_rust >/dev/null || die "Rust $wanted or newer is needed, and this system has no package of it: $rustup"
    read -r -a packages < <(debian_rust)
    say "installing Debian's Rust: ${packages[*]}"
    # rustc-web is in the way of rustc, and nobody asked for its removal.
    install_packages --no-remove "${packages[@]}" ||
        die "Debian's Rust could not be installed: see above. If an older one is in the way, remove it, or $rustup"
}

# Building needs rustfmt: pgrx formats its bindings.
PROGRAMS=(rustc cargo rustdoc rustfmt cargo-fmt cargo-clippy clippy-driver)
has_debian_rust() { new_enough "$(rust_version /usr/bin/rustc)" && [ -x /usr/bin/cargo ] && [ -x /usr/bin/rustfmt ] && [ -x /usr/bin/cargo-clippy ]; }

# Scripts that call each other have it in PATH more than once.
first=$(PATH=${PATH//"$DEBIAN_RUST:"/} && has rustc) || first=
if [ -n "$first" ] && [ "$first" != /usr/bin/rustc ] && new_enough "$(rust_version "$first")"; then
    rm -rf "$DEBIAN_RUST"
    hash -r
    if ! { rustfmt --version && cargo clippy --version; } >/dev/null 2>&1; then
        has rustup >/dev/null || die "rustfmt or clippy is missing beside $first"
        rustup component add rustfmt clippy
    fi
else
    has_debian_rust || install_debian_rust
    if [ -n "$first" ] && [ "$first" != /usr/bin/rustc ]; then
        mkdir -p "$DEBIAN_RUST"
        ln -sf "${PROGRAMS[@]/#//usr/bin/}" "$DEBIAN_RUST"
        say "Rust: Debian's $(rust_version /usr/bin/rustc), by its path /usr/bin/rustc; $first, first in PATH, is $(rust_version "$first")"
    fi
    hash -r
fi

# --- Debian packages -------------------------------------------------------------

missing=()
# need PACKAGE COMMAND...: the package is missing if the command fails.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
has_file_below() { [ -e "$("$PG_CONFIG" "$1")/$2" ]; }
has_libclang() { [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*'; }
has_rsyslog_module() { compgen -G "/usr/lib/*/rsyslog/$1.so"; }
has_php_drivers() { php -r 'exit(extension_loaded("pdo_pgsql") && extension_loaded("pgsql") ? 0 : 1);'; }
# runs PART: whether make test runs this part.
runs() { [ -z "${PART:-}" ] || [[ " $PART " == *" $1 "* ]]; }
has_venv() { "$(system_python)" -c 'import ensurepip, venv'; }

need gcc has cc
need libc6-dev test -e /usr/include/stdio.h
need pkg-config has pkg-config                    # cargo-pgrx links OpenSSL
need libssl-dev pkg-config --exists openssl
need libclang-dev has_libclang                    # pgrx makes its bindings with it
need libicu-dev test -e /usr/include/unicode/ucol.h # headers of PostgreSQL 18 and newer include it
need "postgresql-$PG_MAJOR" has_file_below --bindir postgres
need "postgresql-server-dev-$PG_MAJOR" has_file_below --includedir-server postgres.h
need openssl has openssl                          # makes the master key
need oathtool has oathtool                        # an authenticator that is not ours
if [ "${1:-}" = test ]; then
    need python3-venv has_venv                        # for the cluster tests and pgspot
    need zbar-tools has zbarimg                       # reads QR codes
    need pskctool has pskctool                        # reads files of hardware tokens
    need librsvg2-bin has rsvg-convert                # draws SVG
    need nodejs has node                              # for the tests of clients and of otpauth URIs
    need npm has npm
    need pgbouncer test -x /usr/sbin/pgbouncer        # for the tests of pooling
    need rsyslog test -x /usr/sbin/rsyslogd           # for the tests of logs that are shipped
    need rsyslog-relp has_rsyslog_module omrelp
    if [[ $PG_CONFIG == /usr/lib/postgresql/* ]]; then # an installation that is not Debian's has what it has
        need "postgresql-$PG_MAJOR-pgaudit" has_file_below --pkglibdir pgaudit.so # for the tests of logging.md
        if [ "$PG_MAJOR" -lt 19 ]; then # Debian has none of these for 19 yet: their tests are skipped
            need "postgresql-$PG_MAJOR-plproxy" has_file_below --pkglibdir plproxy.so   # for the tests of scale-out
            need "postgresql-$PG_MAJOR-wal2json" has_file_below --pkglibdir wal2json.so # for those of events.md
            need "postgresql-$PG_MAJOR-cron" has_file_below --pkglibdir pg_cron.so      # for those of chores.md
        fi
        # Since 18 its own package; for the tests of compiled expressions.
        [ "$PG_MAJOR" -lt 18 ] || need "postgresql-$PG_MAJOR-jit" has_file_below --pkglibdir llvmjit.so
    fi
    need sqlsmith has sqlsmith                        # random SQL
    need patch has patch                              # for the build with a fault
    need systemd has systemd-creds                    # for those of master-key.md
    need swtpm has swtpm
    need tpm2-tools has tpm2_pcrextend                # it brings the library by which systemd-creds finds swtpm
    need softhsm2 has softhsm2-util
    need opensc has pkcs11-tool
    need age has age
    need skopeo has skopeo                            # reads the extension image
    need prometheus has promtool                      # for the tests of monitoring
    need prometheus-sql-exporter has prometheus-sql-exporter
    need prometheus-postgres-exporter has prometheus-postgres-exporter
    if runs clients; then
        need golang-go has go
        need golang-github-jackc-pgx-v4-dev test -e /usr/share/gocode/src/github.com/jackc/pgx/v4
        need default-jdk-headless has javac
        need libpostgresql-jdbc-java test -e /usr/share/java/postgresql.jar
        need php-cli has php                          # for the blocks of from-your-language.md
        need php-pgsql has_php_drivers
        need ruby has ruby
        need ruby-pg ruby -e 'require "pg"'
    fi
    if runs release; then
        need rpm has rpmbuild                         # for the test of the RPM
        need rpm2cpio has rpm2cpio
        need cpio has cpio
    fi
    if [ "${LOAD:-}" != light ]; then
        need chromium has chromium                    # for the tests of examples/sign-in
        need fonts-dejavu-core test -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf
    fi
    [ "$(id -u)" -ne 0 ] || need sudo has sudo        # cargo pgrx test --runas
fi
if [[ ${1:-} == @(test|package|release) ]]; then need dpkg-dev has dpkg-shlibdeps; fi
if [[ ${1:-} == @(test|release) ]]; then need openssh-client has ssh-keygen; fi
if [[ ${1:-} == @(sbom|release) ]]; then need python3 test -x "$(system_python)"; fi
[ "${1:-}" != release ] || need faketime has faketime
[ "${1:-}" != versions ] || need debootstrap has debootstrap

# Debian's server package makes a cluster and starts it. Nobody asked for that one.
no_main_cluster=/etc/postgresql-common/createcluster.d/pg_totp-setup.conf
allow_main_cluster() {
    as_root rm -f "$no_main_cluster"
    as_root rmdir --ignore-fail-on-non-empty "$(dirname "$no_main_cluster")"
}

if [ ${#missing[@]} -gt 0 ]; then
    has apt-get >/dev/null || die "this is no Debian system; install by hand what its packages hold: ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    trap allow_main_cluster EXIT
    as_root mkdir -p "$(dirname "$no_main_cluster")"
    echo 'create_main_cluster = false' | as_root tee "$no_main_cluster" >/dev/null
    install_packages "${missing[@]}"
    allow_main_cluster
    if [ -d /run/systemd/system ]; then # nor for a running pooler or Prometheus, nor for a second log
        for package in "${missing[@]}"; do
            case $package in pgbouncer | rsyslog | prometheus*) as_root systemctl disable --now "$package" ;; esac
        done
    fi
    trap - EXIT
fi

# --- cargo-pgrx, of the very version of pgrx that the extension is built with ----

pgrx_version=$(grep -A 1 '^name = "pgrx"$' Cargo.lock | sed -n 's/^version = "\(.*\)"$/\1/p')
[ -n "$pgrx_version" ] || die "Cargo.lock does not name a version of pgrx"
if [ "$("$TOOLS/bin/cargo-pgrx" pgrx --version 2>/dev/null)" != "cargo-pgrx $pgrx_version" ]; then
    say "building cargo-pgrx $pgrx_version into target/tools (a minute or two)"
    # Without optimization: it builds in less than half of the time, and has seconds of work.
    CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-pgrx --version "$pgrx_version" --locked --force --debug --root "$TOOLS"
fi

# cargo-pgrx's list of installations. Written only if it changes: pgrx builds again when it does.
mkdir -p "$PGRX_HOME"
if [ "$PG_CONFIG" = "$(pgrx_toml_entry | cut -d ' ' -f 2)" ]; then
    cp pgrx.toml "$PGRX_HOME/config.toml.new"
else
    printf '[configs]\n%s = "%s"\n' "$PG_LABEL" "$PG_CONFIG" >"$PGRX_HOME/config.toml.new"
fi
if cmp -s "$PGRX_HOME/config.toml.new" "$PGRX_HOME/config.toml"; then
    rm "$PGRX_HOME/config.toml.new"
else
    mv "$PGRX_HOME/config.toml.new" "$PGRX_HOME/config.toml"
fi
