import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring import dashboard

MONITORING = Path(dashboard.__file__).parent
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is missing; after apt-get install prometheus, make test-unit runs it",
)


def test_the_file_is_what_is_generated():
    assert dashboard.DASHBOARD_FILE.read_text() == dashboard.text(), "write it with `python -m monitoring.dashboard`"


def test_panels_lie_side_by_side_and_explain_themselves():
    made = dashboard.dashboard()
    taken = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"]
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])


def test_the_file_names_no_variable_but_its_own():
    assert set(re.findall(r"\$(\w+)", dashboard.text())) <= {"instance", "__rate_interval", "__all"}


@promtool
def test_prometheus_accepts_the_configuration_and_the_rules_do_what_their_tests_say():
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules.test.yml"]):
        result = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_a_test_that_fires_it_and_one_that_does_not():
    rules = yaml.safe_load((MONITORING / "rules.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    tests = yaml.safe_load((MONITORING / "rules.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts
