#!/usr/bin/env bash
# Packs what is built for the PostgreSQL that PG_CONFIG names into an OCI image that has the extension and nothing else, to
# be mounted as a volume, as CloudNativePG does (docs/operations/kubernetes.md). It needs no daemon and no registry.
#
# usage: tools/image.sh
#
# Makes target/image/pg_totp-VERSION-NN-DEBIAN-ARCH, a folder in the OCI image layout, and the same as one file, .tar.
# Two runs over the same build give the same bytes.
#
# SOURCE_DATE_EPOCH        the date of the files; default: that of the last commit, else of Cargo.toml

# shellcheck source=tools/env.sh
. "$(dirname "$0")/env.sh"

version=$(version)
# shellcheck source=/dev/null
debian=$(. /etc/os-release && echo "${VERSION_CODENAME:-$ID$VERSION_ID}")
# That of sid has the name of the release that testing will be.
if apt-cache policy 2>/dev/null | grep -q '^ *release .*,n=sid,'; then debian=sid; fi
date=$(source_date)
revision=$(git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null || true) # empty in a distribution
[ -z "$revision" ] || revision="
    \"org.opencontainers.image.revision\": \"$revision\","
case $(uname -m) in # as Go names them
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) arch=$(uname -m) ;;
esac

tag=$version-$PG_MAJOR-$debian
out=$ROOT/target/image
layout=$out/pg_totp-$tag-$arch
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$layout" "$layout.tar"
mkdir -p "$layout/blobs/sha256"

# archive FOLDER NAME...: a tar of these on standard output, without what differs from machine to machine.
archive() {
    tar --directory="$1" --create --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$date" "${@:2}"
}

# --- The files, where the images of CloudNativePG have them, stripped as in the Debian package --------------------------

root=$work/root
installed=$work/installed
DESTDIR=$installed tools/install.sh copy >/dev/null
mkdir -p "$root/lib" "$root/share/extension" "$root/licenses/pg_totp"
cp "$installed$("$PG_CONFIG" --sharedir)"/extension/* "$root/share/extension"
cp "$installed$("$PG_CONFIG" --pkglibdir)/pg_totp.so" "$root/lib"
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/lib/pg_totp.so"
cp packaging/copyright "$root/licenses/pg_totp"
tools/dependencies.sh licenses | gzip -9n >"$root/licenses/pg_totp/crates.gz"
find "$root" -type d -exec chmod 755 {} +
find "$root" -type f -exec chmod 644 {} +

archive "$root" lib licenses share >"$work/layer.tar"
gzip -9n <"$work/layer.tar" >"$work/layer.tar.gz"

# --- The image: a layer, its configuration, a manifest and an index, each named by its digest ---------------------------

digest() { echo "sha256:$(sha256sum "$1" | cut -d ' ' -f 1)"; }

# add TYPE FILE: moves the file to the blobs, and prints its descriptor.
add() {
    local digest size
    digest=$(digest "$2")
    size=$(stat -c %s "$2")
    mv "$2" "$layout/blobs/sha256/${digest#sha256:}"
    echo "\"mediaType\": \"application/vnd.oci.image.$1\", \"digest\": \"$digest\", \"size\": $size"
}

created=$(date -u -d "@$date" +%Y-%m-%dT%H:%M:%SZ)
# The labels of CloudNativePG's own extension images, but for those that name a registry.
labels=$(
    cat <<JSON
{
    "org.opencontainers.image.title": "pg_totp $tag",
    "org.opencontainers.image.description": "pg_totp $version for PostgreSQL $PG_MAJOR on $debian: TOTP multi-factor authentication",
    "org.opencontainers.image.version": "$version",
    "org.opencontainers.image.created": "$created",$revision
    "org.opencontainers.image.vendor": "the pg_totp developers",
    "org.opencontainers.image.licenses": "PostgreSQL",
    "org.opencontainers.image.base.name": "scratch",
    "io.cloudnativepg.image.base.pgmajor": "$PG_MAJOR",
    "io.cloudnativepg.image.base.os": "$debian",
    "io.cloudnativepg.image.sql.version": "$version"
  }
JSON
)

cat >"$work/config.json" <<JSON
{
  "created": "$created",
  "architecture": "$arch",
  "os": "linux",
  "config": { "User": "65532:65532", "Labels": $labels },
  "rootfs": { "type": "layers", "diff_ids": ["$(digest "$work/layer.tar")"] },
  "history": [{ "created": "$created", "created_by": "tools/image.sh" }]
}
JSON

cat >"$work/manifest.json" <<JSON
{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": { $(add config.v1+json "$work/config.json") },
  "layers": [{ $(add layer.v1.tar+gzip "$work/layer.tar.gz") }],
  "annotations": $labels
}
JSON

cat >"$layout/index.json" <<JSON
{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.index.v1+json",
  "manifests": [
    {
      $(add manifest.v1+json "$work/manifest.json"),
      "platform": { "architecture": "$arch", "os": "linux" },
      "annotations": { "org.opencontainers.image.ref.name": "$tag" }
    }
  ]
}
JSON
echo '{ "imageLayoutVersion": "1.0.0" }' >"$layout/oci-layout"

archive "$layout" blobs index.json oci-layout >"$layout.tar"
echo "${layout#"$ROOT/"}.tar"
