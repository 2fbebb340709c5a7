"""What deploy/ asks of Prometheus, asked of a real one that scrapes both servers under load."""

import io
import json
import math
import re
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from own_prometheus import need_binary, prometheus_server
from PIL import Image
from serendip_client import RetrievalQuery, SerendipClient

from serendip.core import SerendipError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/serendip-latency.json").read_text())
EXPRESSIONS = {
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
}
RULES = yaml.safe_load((DEPLOY / "rules.yml").read_text())["groups"]
RECORDS = {rule["record"] for group in RULES for rule in group["rules"] if "record" in rule}

# Families that the dashboard or docs/monitoring.md name and that no server registers so far. To be
# emptied when both do: each one must then be exposed, and what is asked of it must have data.
NOT_YET = {
    "serendip_resolve_texts_total",
}
# Those that a server has only if it is started with an option that these are not.
OPTIONAL = {
    "serendip_withheld_items",
    "serendip_withhold_failures_total",
    "serendip_tokens_failures_total",
    "serendip_client_calls_total",
    "serendip_client_limited_total",
    "serendip_unauthenticated_total",
    "serendip_upstream_token_failures_total",
    "serendip_tls_failures_total",
}
# Those whose series come with their first event, of a kind that this load does not have.
MAY_BE_EMPTY = {
    "serendip_refused_total",
    "serendip_live_refused_rows_total",
    "serendip_live_dropped_rows_total",
}


def families(url):
    """Names of a page's metric families, but for the times at which they were made."""
    page = urllib.request.urlopen(url, timeout=20).read().decode()
    named = re.findall(r"^# TYPE (\w+) \w+$", page, re.MULTILINE)
    return {name for name in named if not name.endswith("_created")}


def asked(expr, exposed):
    """The metric families that an expression names."""
    names = re.findall(r"\b(?:grpc_server|serendip)_\w+(?=\{|\[)", expr)
    return {n if n in exposed else re.sub(r"_(bucket|sum|count)$", "", n) for n in names} or {"up"}


def substituted(expr):
    """An expression as Grafana sends it with everything selected."""
    for variable, value in (
        ("$__rate_interval", "1m"),
        ("$job", ".+"),
        ("$instance", ".+"),
    ):
        expr = expr.replace(variable, value)
    assert "$" not in expr
    return expr


def picture():
    out = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(out, "JPEG")
    return out.getvalue()


class Load:
    """Calls of every kind, some of which fail; counts the rows of plans that it was answered."""

    def __init__(self, up, client):
        self._up, self._client, self.rounds = up, client, 0
        self.sources = Counter()
        self.left_out = 0

    def round(self):
        up, client, tree = self._up, self._client, self._up.tree
        self.rounds += 1
        at = self.rounds % 60
        leaves = list(tree.nodes.at_level(4))
        history = list(tree.item_ids[at : at + 5])
        for _ in range(3):
            *_, row = self._plan([up.stored] * 8)
        known = [leaves[at], row.plan.clusters[0].node_id]
        self._plan([up.stored, up.live, up.broken, "nobody"], k=3, exclude_node_ids=known)
        client.plan_content(f"dough {self.rounds}", thumbnail=picture(), k=2)
        client.resolve([tree.nodes.description[leaves[at]], "nonsense"])
        for _ in range(3):
            self.sources[client.recommend(history, up.stored, 5).source] += 1
        client.retrieve(history, [leaves[at]], tree_version=tree.version, k=5)
        client.retrieve([], [leaves[at]], tree_version=tree.version, k=1000)
        rows = [RetrievalQuery(tuple(history), (leaf,), 5) for leaf in leaves[:6]]
        client.retrieve_batch(rows, tree_version=tree.version)
        for wrong in (
            lambda: client.recommend([], "nobody", 5),
            lambda: client.retrieve([], [1], tree_version="0" * 12),
            lambda: client.get_cluster(10_000),
        ):
            with pytest.raises(SerendipError):
                wrong()

    def _plan(self, ids, **options):
        rows = self._client.plan(ids, **options)
        for row in rows:
            self.sources[row.source] += 1
            self.left_out += row.left_out or 0
        return rows


def has_data(series):
    return any(math.isfinite(value) for _, value in series)


@pytest.fixture(scope="module")
def watched(up, tmp_path_factory):
    """Both servers, and a Prometheus that scrapes them until every query has had its data.

    What stays without any is in ``pending``, after a minute.
    """
    need_binary("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "rules.yml")]
    pages = {"serendip-planner": up.planner.metrics, "serendip-retriever": up.retriever.metrics}
    assert pages.keys() == {job["job_name"] for job in config["scrape_configs"]}
    for job in config["scrape_configs"]:
        host = pages[job["job_name"]].removeprefix("http://").removesuffix("/metrics")
        job["static_configs"][0]["targets"] = [host]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    exposed = {"up"}.union(*map(families, pages.values()))
    there = exposed - MAY_BE_EMPTY
    pending = {
        substituted(expr): what for what, expr in EXPRESSIONS if asked(expr, exposed) <= there
    }
    pending |= dict.fromkeys(RECORDS, "rule")
    with (
        prometheus_server(folder / "prometheus.yml", folder) as prometheus,
        SerendipClient(up.planner.address, up.retriever.address, timeout_s=20) as client,
    ):
        load = Load(up, client)
        until = time.monotonic() + 60
        load.round()  # labels come with their first event, and a rate takes two scrapes of them
        while len(prometheus.query("up")) < len(pages):  # it takes up its targets after 5 s
            assert time.monotonic() < until, "Prometheus has scraped nothing"
            time.sleep(0.1)
        while pending and time.monotonic() < until:
            load.round()
            for expr in list(pending):
                if has_data(prometheus.query(expr)):
                    del pending[expr]
        yield SimpleNamespace(prometheus=prometheus, pending=pending, exposed=exposed, load=load)


def test_every_query_has_data(watched):
    assert watched.pending == {}


def test_every_query_is_valid_and_asks_what_a_server_has(watched):
    for _, expr in EXPRESSIONS:
        watched.prometheus.query(substituted(expr))
        for name in asked(expr, watched.exposed) - watched.exposed:
            assert name in OPTIONAL | NOT_YET, f"nobody has {name}: {expr}"


def test_both_tiers_are_scraped(watched):
    def scraped():
        targets = watched.prometheus.get("targets", state="active")["activeTargets"]
        return {(t["labels"]["job"], t["labels"]["tier"], t["health"]) for t in targets}

    up = {("serendip-planner", "planner", "up"), ("serendip-retriever", "retriever", "up")}
    until = time.monotonic() + 20
    while scraped() != up and time.monotonic() < until:  # a scrape of 1 s may be late once
        time.sleep(0.1)
    assert scraped() == up


def test_every_rule_is_evaluated_and_nothing_is_alarming(watched):
    groups = watched.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in RULES)
    assert [r for r in rules if r["health"] != "ok"] == []
    # The world's plans are minutes old, no release was refused, and nothing was restarted.
    calm = {"SerendipPlansStale", "SerendipReloadFailing", "SerendipLiveWorkerRestarts"}
    assert {r["name"] for r in rules if r.get("alerts")} & calm == set()


def test_series_that_nobody_asks_for_are_not_kept(watched):
    assert watched.prometheus.query('count({__name__=~".+_created"})') == []
    assert watched.prometheus.query("count(grpc_server_handled_total)")


def test_rows_are_counted_as_they_were_answered(watched):
    told = {str(s.value if s else "none"): n for s, n in watched.load.sources.items()}
    # A recommendation's own row counts as well; nobody's failed.
    told["none"] += watched.load.rounds
    assert told.keys() == {"store", "live", "fallback", "none"}

    def counted():
        rows = watched.prometheus.query("serendip_plan_rows_total")
        return {labels["source"]: value for labels, value in rows}

    until = time.monotonic() + 20
    while counted() != told and time.monotonic() < until:
        time.sleep(0.1)
    assert counted() == told
    for name, value in (
        ("serendip_plan_age_seconds_count", told["store"]),
        ("serendip_plans_left_out_total", watched.load.left_out),
    ):
        assert [v for _, v in watched.prometheus.query(name)] == [value]
    assert watched.load.left_out > 0


def documented():
    """Metric families of docs/monitoring.md, with the tiers that have them."""
    section = (ROOT / "docs/monitoring.md").read_text().split("\n## Metrics\n")[1]
    rows = re.findall(r"^\| `(\w+)(?:\{[\w,]+\})?` \| (\w+) \|", section.split("\n## ")[0], re.M)
    names = [name for name, _ in rows]
    assert len(names) == len(set(names))
    return dict(rows)


def test_the_page_of_metrics_lists_every_family_and_no_other(up):
    planner, retriever = families(up.planner.metrics), families(up.retriever.metrics)
    tier = dict.fromkeys(planner, "planner") | dict.fromkeys(retriever, "retriever")
    tier |= dict.fromkeys(planner & retriever, "both")
    said = documented()
    assert {name: said.get(name) for name in tier} == tier
    assert said.keys() - tier.keys() == (OPTIONAL | NOT_YET) - tier.keys()
