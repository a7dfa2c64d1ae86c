"""Prints a CycloneDX document of what the library is linked from, for tools/dependencies.sh, which says what that is.

usage: cargo tree --prefix depth --no-dedupe --format '|{p}|{l}' ... | python3 tools/sbom.py PLATFORM DATE

Checksums are those of Cargo.lock. The same input gives the same bytes.
"""

import json
import re
import sys
import tomllib
import uuid
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKED = {(crate["name"], crate["version"]): crate for crate in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
NAME = "pg_totp"


def component(package: str, license_: str) -> dict:
    """One crate, from cargo's "name v1.2.3" with the folder of one of ours behind it."""
    name, version, folder = re.fullmatch(r"(\S+) v(\S+)(?: \((/.*)\))?", package).groups()
    crate = {"type": "library", "name": name, "version": version, "licenses": [{"expression": license_.replace("/", " OR ")}]}
    if folder:
        inside = Path(folder).relative_to(ROOT).as_posix()
        purl = f"pkg:generic/{NAME}@{version}" + ("" if inside == "." else f"#{inside}")
    else:
        purl = f"pkg:cargo/{name}@{version}"
        crate["hashes"] = [{"alg": "SHA-256", "content": LOCKED[name, version]["checksum"]}]
    return {"bom-ref": purl, **crate, "purl": purl}


def read(tree) -> tuple[dict[str, dict], dict[str, set[str]]]:
    """The crates by their reference, the library first, and the references of those that each depends on."""
    crates, needs, above = {}, {}, []
    for line in tree:
        depth, package, license_ = line.rstrip("\n").split("|")
        crate = component(package, license_)
        crates[crate["bom-ref"]] = crate
        needs.setdefault(crate["bom-ref"], set())
        del above[int(depth):]
        if above:
            needs[above[-1]].add(crate["bom-ref"])
        above.append(crate["bom-ref"])
    return crates, needs


def document(tree, platform: str, date: int) -> dict:
    crates, needs = read(tree)
    library, *others = crates
    made = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(date, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycles": [{"phase": "build"}],
            "authors": [{"name": f"the {NAME} developers"}],
            "component": crates[library],
            "properties": [{"name": "cdx:rustc:sbom:target:triple", "value": platform}],
        },
        "components": [crates[reference] for reference in sorted(others)],
        "dependencies": [{"ref": reference, "dependsOn": sorted(needs[reference])} for reference in sorted(crates)],
    }
    return {"serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(made))}", **made}


if __name__ == "__main__":
    _, platform, date = sys.argv
    print(json.dumps(document(sys.stdin, platform, int(date)), indent=2))
