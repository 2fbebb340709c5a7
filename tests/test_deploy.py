"""What lies in deploy/ is whole: the dashboard is its code's, rules hold, alerts have a page."""

import importlib.util
import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from own_prometheus import need_binary

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "rules.yml").read_text())["groups"]
ALERTS = [rule for group in RULES for rule in group["rules"] if "alert" in rule]


@pytest.fixture(scope="module")
def code():
    """deploy/grafana/dashboard.py as a module."""
    pytest.importorskip("grafana_foundation_sdk")
    file = DEPLOY / "grafana/dashboard.py"
    spec = importlib.util.spec_from_file_location("deployed_dashboard", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dashboard():
    return json.loads((DEPLOY / "grafana/dashboards/serendip-latency.json").read_text())


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_the_dashboard_is_what_its_code_writes(code):
    assert code.FILE.read_text() == code.text(), "run python deploy/grafana/dashboard.py"


def test_panels_are_told_apart_and_lie_beside_each_other(dashboard):
    every = dashboard["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    titles = [panel["title"] for panel in every]
    assert len(set(titles)) == len(titles)

    def cells(panel):
        at = panel["gridPos"]
        return {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }

    for one, other in combinations(every, 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])
    for panel in every:
        assert panel["gridPos"]["x"] >= 0
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_every_panel_has_a_description_a_unit_and_a_source(dashboard):
    for panel in panels(dashboard):
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert references, panel["title"]
        assert len(set(references)) == len(references)


def test_every_query_follows_the_choice_and_sums_over_processes(dashboard):
    for panel in panels(dashboard):
        for target in panel["targets"]:
            expr = target["expr"]
            selectors = re.findall(r"\{([^}]*)\}", expr)
            assert selectors
            for selector in selectors:
                assert 'job=~"$job",instance=~"$instance"' in selector
            assert re.search(r"\b(sum|min|max)\b", expr), expr
            assert "[" not in expr.replace("[$__rate_interval]", "")
            if "histogram_quantile" in expr:
                assert re.search(r"sum by \(le\b", expr), expr


def test_rows_are_those_that_the_documentation_names(dashboard):
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    section = (ROOT / "docs/monitoring.md").read_text().split("\n## The dashboard\n")[1]
    assert rows == re.findall(r"^\| ([A-Z]\w+) \|", section.split("\n## ")[0], re.M)


def test_variables_choose_source_job_and_instance(dashboard):
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    for name in ("job", "instance"):
        assert variables[name]["includeAll"]
        assert variables[name]["multi"]
        assert variables[name]["allValue"] == ".+"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_do(alert):
    name = alert["alert"]
    annotations = alert["annotations"]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert annotations["summary"]
    assert annotations["description"]
    assert annotations["runbook_url"] == f"docs/alerts.md#{name.lower()}"
    page = (ROOT / "docs/alerts.md").read_text()
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    assert f"({alert['labels']['severity']})" in section
    assert "\n- " in section


def test_the_page_of_alerts_has_no_other():
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/alerts.md").read_text(), re.M)
    assert sections == [alert["alert"] for alert in ALERTS]


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_has_nothing_to_say(arguments):
    command = [need_binary("promtool"), *arguments]
    run = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_rule_has_a_unit_test():
    tested = (DEPLOY / "rules_test.yml").read_text()
    for group in RULES:
        for rule in group["rules"]:
            name = rule.get("alert") or rule["record"]
            # A budget is tested by the alert that compares with it.
            assert name in tested or group["name"] == "serendip-budgets", name


def test_what_the_compose_file_mounts_is_there():
    compose = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    assert set(compose["services"]) == {"prometheus", "grafana"}
    named = set(compose["volumes"])
    inside = {}
    for service in compose["services"].values():
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            assert source in named or (DEPLOY / source).exists(), volume
            inside[source] = target
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/serendip.yml").read_text())
    path = provider["providers"][0]["options"]["path"]
    assert path == inside["./grafana/dashboards"]
    home = compose["services"]["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ]
    assert (DEPLOY / "grafana/dashboards" / Path(home).name).exists()
    assert str(Path(home).parent) == path


def test_the_data_source_is_the_prometheus_beside_it():
    source = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"][0]
    compose = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    listens = [
        argument.split("=")[1].replace("127.0.0.1", "localhost")
        for argument in compose["services"]["prometheus"]["command"]
        if "listen-address" in argument
    ]
    assert [source["url"]] == [f"http://{address}" for address in listens]
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
