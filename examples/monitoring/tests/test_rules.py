"""The alert rules, without a server: promtool runs totp-alerts-test.yml."""

import re
import subprocess
from pathlib import Path

import pytest
from exporters import EXAMPLE
from references import faults
from server import CHECKOUT

RULES, TESTS = ((EXAMPLE / name).read_text() for name in ("totp-alerts.yml", "totp-alerts-test.yml"))
ALERTS = re.findall(r"- alert: (\w+)", RULES)


def promtool(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(["promtool", *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def failures(alert: str, pattern: str, replacement: str, folder: Path) -> str:
    """What promtool says of one alert in its tests when the text of that alert is changed."""
    parts = re.split(r"(?m)^(?=      - alert: )", RULES)
    changed = [re.sub(pattern, replacement, part) if f"- alert: {alert}\n" in part else part for part in parts]
    assert changed != parts
    (folder / "totp-alerts.yml").write_text("".join(changed))
    head, *tests = re.split(r"(?m)^(?=  - name: )", TESTS)
    (folder / "test.yml").write_text(head + "".join(test for test in tests if f"alertname: {alert}\n" in test))
    done = promtool("test", "rules", folder / "test.yml")
    assert (done.returncode == 0) == ("FAILED" not in done.stdout)
    return done.stdout


def test_prometheus_takes_the_configuration_and_the_rules():
    done = promtool("check", "config", EXAMPLE / "prometheus.yml")
    assert done.returncode == 0 and f"{len(ALERTS)} rules found" in done.stdout, done.stdout


def test_every_alert_fires_in_time_and_for_nothing_else():
    done = promtool("test", "rules", EXAMPLE / "totp-alerts-test.yml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("alert", ALERTS)
def test_the_tests_of_the_rules_notice_a_wrong_rule(alert, tmp_path):
    """One that never fires, that always does, or that does not wait."""
    expression = r"expr: (\|\n( {10}.*\n)+|.*\n)"
    noticed = f"alertname: {alert}, time: "
    assert noticed in failures(alert, expression, "expr: vector(0) > 1\n", tmp_path)
    assert noticed in failures(alert, expression, "expr: vector(1)\n", tmp_path)
    if alert != "TotpPromoted":  # an event, which has no time to wait
        assert noticed in failures(alert, r"for: \w+", "for: 0s", tmp_path)


@pytest.mark.parametrize("number", range(4))
def test_the_tests_of_the_rules_notice_a_missing_part_of_a_rule(number, tmp_path):
    """Silence has four causes, and each has its line."""
    alert = "TotpMetricsMissing"
    parts = re.findall(r"(?m)^ {10}(?:or )?(\(.*\))$", RULES.partition(f"- alert: {alert}\n")[2])
    assert len(parts) == 4
    assert f"alertname: {alert}, time: " in failures(alert, re.escape(parts[number]), "(vector(0) > 1)", tmp_path)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_runbook_and_an_explanation(alert):
    """The annotation is a link to a section of docs/operations, and docs/operations/monitoring.md says what the alert means."""
    [text] = re.findall(rf"- alert: {alert}\n(.*?)(?=\n\n|\Z)", RULES, re.S)
    [runbook] = re.findall(r"runbook: (\S+)$", text, re.M)
    assert re.fullmatch(r"docs/operations/[\w-]+\.md#[\w-]+", runbook)
    assert faults(CHECKOUT, CHECKOUT / "README.md", f"[runbook]({runbook})") == []
    assert re.search(r"severity: (critical|warning) ", text)
    assert re.search(rf"^\| `{alert}` \|", (CHECKOUT / "docs" / "operations" / "monitoring.md").read_text(), re.M)


def test_every_check_that_a_rule_names_is_a_check():
    """A misspelled one would never fire."""
    named = {check for checks in re.findall(r'check!?[=~]+"([^"]+)"', RULES) for check in checks.split("|")}
    reference = (CHECKOUT / "docs" / "reference.md").read_text().partition("\n## Health checks\n")[2]
    assert named and named <= set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", reference, re.M))))
