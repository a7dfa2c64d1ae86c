"""docs/standards.md: each requirement says what shows it, and the inventory of the cryptography is that of the sources."""

import re
import tomllib

from check import ROOT

STANDARDS = (ROOT / "docs/standards.md").read_text()
SHOWN_BY = r"(?:`(?:tests|crates|examples)/[\w/-]+\.(?:py|rs)::\w+`|the application's|the operator's|not met|-)"
INVENTORY = dict(re.findall(r"`([\w-]+)` (\d+\.\d+\.\d+)", STANDARDS.partition("## Inventory of the cryptography")[2]))
OTHER_LIBRARIES = {"csv-core", "data-encoding", "hex", "libc", "otp", "percent-encoding", "pgrx", "pgrx-tests", "png", "qrcodegen", "quick-xml", "seal", "thiserror", "tokens"}


def test_every_requirement_names_its_tests_or_says_that_there_is_none():
    """In the tables "requirement | how | test". references.py looks for the tests."""
    rows = re.findall(r"^\| (?!requirement |---)([^|]+) \| ([^|]+) \| ([^|]+) \|$", STANDARDS, re.MULTILINE)
    assert len(rows) > 90
    for requirement, _, shown_by in rows:
        assert re.fullmatch(rf"{SHOWN_BY}(?:, {SHOWN_BY})*", shown_by.strip()), requirement


# The sections that an auditor must find, met or not.
SECTIONS = {
    "NIST SP 800-63B-4": "2.2.2 3.2.2 4.1.2.1 4.2.2.2 4.4 4.6",
    "OWASP ASVS 5.0": "6.3.3 6.3.4 6.4.3 6.4.6 7.5.1 11.1.1 11.1.2 11.1.3 11.1.4 13.3.1 13.3.3 15.1.2 16.3.1 16.3.3 16.4.2 16.4.3",
    "PCI DSS 4.0.1": "8.2.6 8.3.3 8.3.4 8.5.1 10.2.1 10.3.2 10.3.3 10.3.4 10.5.1",
}


def test_every_section_is_there():
    for standard, sections in SECTIONS.items():
        table = STANDARDS.partition(f"\n## {standard}\n")[2].partition("\n## ")[0]
        rows = re.findall(r"^\| ([\d., ]+)[: ]", table, re.MULTILINE)
        there = {section.strip() for row in rows for section in row.split(",")}
        assert set(sections.split()) <= there, standard


def test_the_inventory_has_the_versions_of_the_lock_file():
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    assert INVENTORY
    for name, version in INVENTORY.items():
        assert [package["version"] for package in locked if package["name"] == name] == [version], name


def test_the_inventory_has_every_cryptographic_library():
    manifests = [tomllib.loads((ROOT / folder / "Cargo.toml").read_text()) for folder in (".", "crates/otp", "crates/seal", "crates/tokens")]
    libraries = {name for manifest in manifests for name in manifest["dependencies"]} - OTHER_LIBRARIES
    assert libraries and libraries <= set(INVENTORY)
