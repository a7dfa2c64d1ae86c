"""docs/operations/kubernetes.md: its YAML, read as Kubernetes does, has the names of the resources and fits together."""

import re
import tomllib

import blocks
import pytest
import yaml
from check import ROOT

PAGE = ROOT / "docs" / "operations" / "kubernetes.md"
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]

# The fields that the page uses of each kind, with their types: the API references of CloudNativePG 1.30, Kubernetes 1.35 and Patroni 4.
METADATA = {"name": str}
ITEMS = [{"key": str, "path": str}]
FIELDS = {
    "Cluster": {"apiVersion": "postgresql.cnpg.io/v1", "kind": str, "metadata": METADATA, "spec": {
        "instances": int, "imageName": str, "primaryUpdateMethod": str, "storage": {"size": str},
        "projectedVolumeTemplate": {"defaultMode": int, "sources": [{"secret": {"name": str, "items": ITEMS}}]},
        "postgresql": {"parameters": {"totp.key_file": str, "totp.issuer": str}, "synchronous": {"method": str, "number": int, "failoverQuorum": bool},
                       "extensions": [{"name": str, "image": {"reference": str}}]}}},
    "Database": {"apiVersion": "postgresql.cnpg.io/v1", "kind": str, "metadata": METADATA, "spec": {
        "cluster": {"name": str}, "name": str, "owner": str, "schemas": [{"name": str, "owner": str}],
        "extensions": [{"name": str, "schema": str, "version": str}]}},
    "Pod": {"apiVersion": "v1", "kind": str, "metadata": METADATA, "spec": {
        "securityContext": {"fsGroup": int},
        "containers": [{"name": str, "image": str, "args": [str], "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}]}],
        "volumes": [{"name": str, "secret": {"secretName": str, "defaultMode": int, "items": ITEMS}}]}},
    "Patroni": {"postgresql": {"parameters": {"totp.key_file": str, "totp.issuer": str}}, "synchronous_mode": bool},
}


def resources() -> dict[str, dict]:
    """The YAML of the page by its kind; what has none is the configuration of Patroni."""
    found = [yaml.safe_load(part.text) for part in blocks.read(PAGE.read_text(), PAGE.name) if part.language == "yaml"]
    by_kind = {one.get("kind", "Patroni"): one for one in found}
    assert len(by_kind) == len(found)
    return by_kind


RESOURCES = resources()


def faults(value, fields, place: str) -> list[str]:
    """Where a value has a name that the fields do not have, or another type."""
    if isinstance(fields, dict) and isinstance(value, dict):
        unknown = [f"{place}.{name}: no such field" for name in value.keys() - fields.keys()]
        return unknown + [fault for name in value.keys() & fields.keys() for fault in faults(value[name], fields[name], f"{place}.{name}")]
    if isinstance(fields, list) and isinstance(value, list):
        return [fault for one in value for fault in faults(one, fields[0], f"{place}[]")]
    is_right = value == fields if isinstance(fields, str) else isinstance(fields, type) and type(value) is fields
    return [] if is_right else [f"{place}: {value!r}"]


@pytest.mark.parametrize("kind", FIELDS)
def test_each_resource_has_only_fields_that_there_are(kind):
    assert faults(RESOURCES[kind], FIELDS[kind], kind) == []
    assert RESOURCES.keys() == FIELDS.keys()


def test_a_wrong_name_or_type_would_be_seen():
    assert faults({"instance": 3}, {"instances": int}, "x") == ["x.instance: no such field"]
    assert faults({"version": 0.2}, {"version": str}, "x") == ["x.version: 0.2"]
    assert faults([{"a": "1"}], [{"a": int}], "x") == ["x[].a: '1'"]


def test_the_key_file_is_where_the_secret_is_mounted_and_has_the_mode_that_is_accepted():
    cluster, pod = RESOURCES["Cluster"]["spec"], RESOURCES["Pod"]["spec"]
    projected, [volume], [mount] = cluster["projectedVolumeTemplate"], pod["volumes"], pod["containers"][0]["volumeMounts"]
    [source], [item] = projected["sources"], volume["secret"]["items"]
    assert cluster["postgresql"]["parameters"]["totp.key_file"] == f"/projected/{source['secret']['items'][0]['path']}"
    assert pod["containers"][0]["args"] == ["-c", f"totp.key_file={mount['mountPath']}/{item['path']}"] and mount["name"] == volume["name"]
    assert projected["defaultMode"] == volume["secret"]["defaultMode"] == 0o440
    for secret, key in ((source["secret"]["name"], source["secret"]["items"][0]["key"]), (volume["secret"]["secretName"], item["key"])):
        assert f"create secret generic {secret} --from-file={key}\n" in PAGE.read_text()


def test_the_database_is_of_the_cluster_and_has_the_version_of_the_image():
    cluster, database = RESOURCES["Cluster"], RESOURCES["Database"]["spec"]
    assert database["cluster"]["name"] == cluster["metadata"]["name"]
    assert database["extensions"] == [{"name": "pg_totp", "schema": database["schemas"][0]["name"], "version": VERSION}]
    [extension] = cluster["spec"]["postgresql"]["extensions"]
    repository, tag = extension["image"]["reference"].split(":")
    assert tag.startswith(f"{VERSION}-") and f"{repository}:{tag}\n" in PAGE.read_text()
    assert f"pg_totp-{tag}-amd64.tar" in PAGE.read_text()


def test_a_failover_that_is_not_forced_loses_no_answered_code():
    """With failoverQuorum the operator promotes an instance only if one that it can promote has each of them. New in CloudNativePG 1.28."""
    synchronous = RESOURCES["Cluster"]["spec"]["postgresql"]["synchronous"]
    assert synchronous == {"method": "any", "number": 1, "failoverQuorum": True}
    [minimum] = re.findall(r"CloudNativePG (\d+\.\d+) or newer", PAGE.read_text())
    assert tuple(map(int, minimum.split("."))) >= (1, 28)
