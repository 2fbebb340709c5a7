"""The Grafana dashboard of both tiers, as code: writes dashboards/serendip-latency.json.

    python deploy/grafana/dashboard.py

Every expression sums over a tier's worker processes, each of which is a target of its own. Rates
that are divided by are asked to be above 0, so that a quiet server draws nothing rather than NaN.
Knows the metrics by their names alone: docs/monitoring.md says what each one tells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

FILE = Path(__file__).parent / "dashboards" / "serendip-latency.json"

_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_WHERE = 'job=~"$job",instance=~"$instance"'
_OURS = 'grpc_service=~"serendip.+"'  # neither health nor reflection
_ACROSS, _HEIGHT = 24, 8


@dataclass(frozen=True)
class Query:
    """One expression, and what its series are called in the legend."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        width: of Grafana's 24 columns.
        kind: "timeseries", "stat", or "table" (of the latest values).
        stacked: whether series stand one on the other.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    kind: str = "timeseries"
    stacked: bool = False


# --- PromQL ------------------------------------------------------------------------------


def rate(metric: str, by: Sequence[str] = (), where: str = "") -> str:
    """A counter's rate a second, summed over all processes but for the labels ``by``."""
    selector = ",".join(filter(None, (_WHERE, where)))
    return f"{_sum(by)} (rate({metric}{{{selector}}}[$__rate_interval]))"


def gauge(metric: str, by: Sequence[str] = (), how: str = "sum", where: str = "") -> str:
    """A gauge over all processes but for the labels ``by``."""
    selector = ",".join(filter(None, (_WHERE, where)))
    return f"{_sum(by, how)} ({metric}{{{selector}}})"


def quantile(q: float, metric: str, by: Sequence[str] = (), where: str = "") -> str:
    """A quantile of a histogram over all processes but for the labels ``by``."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', ('le', *by), where)})"


def mean(metric: str, by: Sequence[str] = ()) -> str:
    """The mean of what a histogram has observed."""
    return ratio(rate(f"{metric}_sum", by), rate(f"{metric}_count", by))


def ratio(part: str, whole: str) -> str:
    """A quotient; empty where there is nothing to divide by."""
    return f"{part} / ({whole} > 0)"


def _sum(by: Sequence[str], how: str = "sum") -> str:
    return f"{how} by ({', '.join(by)})" if by else how


# --- what is shown -----------------------------------------------------------------------

_METHOD = ("tier", "grpc_method")
_SECONDS = "grpc_server_handling_seconds"
_CALLS = ("grpc_server_handled_total", ("tier",), _OURS)
_SHED = (*_CALLS[:2], f'{_OURS},grpc_code="RESOURCE_EXHAUSTED"')


def _quantiles(
    metric: str, by: Sequence[str] = (), qs: Sequence[float] = (0.5, 0.99)
) -> tuple[Query, ...]:
    names = " ".join(f"{{{{{label}}}}}" for label in by)
    return tuple(Query(quantile(q, metric, by), f"p{100 * q:g} {names}".strip()) for q in qs)


OVERVIEW = (
    Panel(
        "Calls",
        "Calls that ended, by tier and method, whatever came of them.",
        units.RequestsPerSecond,
        (Query(rate("grpc_server_handled_total", _METHOD, _OURS), "{{tier}} {{grpc_method}}"),),
    ),
    Panel(
        "Latency, p50",
        "Half of the calls took less, in the server, from the handler's start to its end.",
        units.Seconds,
        (Query(quantile(0.5, _SECONDS, _METHOD, _OURS), "{{tier}} {{grpc_method}}"),),
    ),
    Panel(
        "Latency, p99",
        "One call of a hundred took longer. The alert SerendipLatencyHigh has the budgets.",
        units.Seconds,
        (Query(quantile(0.99, _SECONDS, _METHOD, _OURS), "{{tier}} {{grpc_method}}"),),
    ),
    Panel(
        "Calls that failed",
        "Calls by status, OK left out. INVALID_ARGUMENT and NOT_FOUND are the caller's.",
        units.RequestsPerSecond,
        (
            Query(
                rate(
                    "grpc_server_handled_total",
                    ("tier", "grpc_code"),
                    f'{_OURS},grpc_code!="OK"',
                ),
                "{{tier}} {{grpc_code}}",
            ),
        ),
    ),
    Panel(
        "Share that was shed",
        "Share of calls that ended as RESOURCE_EXHAUSTED.",
        units.PercentUnit,
        (
            Query(
                ratio(
                    # No call was ever shed: there is no such series, and the share is 0.
                    f"({rate(*_SHED)} or 0 * {rate(*_CALLS)})",
                    rate(*_CALLS),
                ),
                "{{tier}}",
            ),
        ),
    ),
    Panel(
        "Refused before they were begun",
        "Calls refused at the door: too many in flight, late for their deadline, or stopping.",
        units.RequestsPerSecond,
        (Query(rate("serendip_refused_total", ("tier", "reason")), "{{tier}} {{reason}}"),),
    ),
    Panel(
        "In flight",
        "Calls that have begun and not ended.",
        units.Short,
        (
            Query(
                f"{gauge('grpc_server_started_total', ('tier',), where=_OURS)} - "
                f"{gauge('grpc_server_handled_total', ('tier',), where=_OURS)}",
                "{{tier}}",
            ),
        ),
    ),
    Panel(
        "Processes",
        "Worker processes whose page was read at the last scrape.",
        units.Short,
        (Query(gauge("up", ("tier",)), "{{tier}}"),),
        kind="stat",
    ),
    Panel(
        "Clients",
        "Calls by the client whose token they had, those beyond its rate, and those without a "
        "token; nothing where --tokens is not given.",
        units.RequestsPerSecond,
        (
            Query(rate("serendip_client_calls_total", ("tier", "client")), "{{tier}} {{client}}"),
            Query(
                rate("serendip_client_limited_total", ("tier", "client")),
                "{{tier}} {{client}}, limited",
            ),
            Query(rate("serendip_unauthenticated_total", ("tier",)), "{{tier}}, no token"),
        ),
    ),
)

PLANNER = (
    Panel(
        "Rows of plans by source",
        "From the store, made live, a fallback, or none: the row failed.",
        units.RowsPerSecond,
        (Query(rate("serendip_plan_rows_total", ("source",)), "{{source}}"),),
        stacked=True,
    ),
    Panel(
        "Share of each source",
        "A growing share of live and fallback rows: the store lacks what is asked for.",
        units.PercentUnit,
        (
            Query(
                f"{rate('serendip_plan_rows_total', ('source',))} / on () group_left () "
                f"({rate('serendip_plan_rows_total')} > 0)",
                "{{source}}",
            ),
        ),
    ),
    Panel(
        "Age of stored plans",
        "Of the plans that were answered, a row each. Quantiles are as coarse as the buckets.",
        units.Seconds,
        (
            *_quantiles("serendip_plan_age_seconds", qs=(0.5, 0.95)),
            Query(mean("serendip_plan_age_seconds"), "mean"),
        ),
    ),
    Panel(
        "Plans in the store",
        "Of the release that is served; two values while processes go over to another.",
        units.Short,
        (
            Query(gauge("serendip_plans_store_count", how="max"), "most"),
            Query(gauge("serendip_plans_store_count", how="min"), "least"),
        ),
        kind="stat",
    ),
    Panel(
        "Clusters left out by options",
        "Clusters of plans that a request's constraint, exclusions or score left out.",
        units.OpsPerSecond,
        (Query(rate("serendip_plans_left_out_total"), "left out"),),
    ),
    Panel(
        "Texts resolved",
        "Texts given to Resolve, by outcome: the match rate of an outside model.",
        units.OpsPerSecond,
        (Query(rate("serendip_resolve_texts_total", ("outcome",)), "{{outcome}}"),),
        stacked=True,
    ),
    Panel(
        "Recommend: seconds of its parts",
        "Planning, and the retriever's answer as the planner server sees it, within Recommend.",
        units.Seconds,
        _quantiles("serendip_recommend_seconds", ("part",)),
    ),
    Panel(
        "Live: wait for a batch",
        "From a row's arrival at the live queue to its batch.",
        units.Seconds,
        _quantiles("serendip_live_wait_seconds"),
    ),
    Panel(
        "Live: rows a batch",
        "Mean rows that the model planned together.",
        units.Short,
        (Query(mean("serendip_live_batch_rows"), "rows"),),
    ),
    Panel(
        "Live: rows that wait",
        "Depth of the live queue.",
        units.Short,
        (Query(gauge("serendip_live_waiting_rows"), "waiting"),),
    ),
    Panel(
        "Live: seconds by stage",
        "A batch's way: media, encode, prefill, reasoning, answer.",
        units.Seconds,
        _quantiles("serendip_live_seconds", ("stage",)),
    ),
    Panel(
        "Live: rows refused and dropped",
        "Refused: the queue was full or the wait too long. Dropped: their caller had gone.",
        units.RowsPerSecond,
        (
            Query(rate("serendip_live_refused_rows_total", ("reason",)), "refused, {{reason}}"),
            Query(rate("serendip_live_dropped_rows_total", ("reason",)), "dropped, {{reason}}"),
        ),
    ),
    Panel(
        "Live: shared and kept plans, restarts",
        "Requests that another's plan was shared with, plans kept for later calls, writes of kept "
        "plans that failed, and live workers started in place of one that died.",
        units.OpsPerSecond,
        (
            Query(rate("serendip_live_shared_total"), "shared"),
            Query(rate("serendip_live_kept_total"), "kept"),
            Query(rate("serendip_live_keep_failures_total"), "not kept"),
            Query(rate("serendip_live_worker_restarts_total"), "restarts"),
        ),
    ),
)

RETRIEVER = (
    Panel(
        "Rows a batch",
        "Mean rows that were run together. Near 1 under load: batches do not fill.",
        units.Short,
        (Query(mean("serendip_batch_rows"), "rows"),),
    ),
    Panel(
        "Wait for a batch",
        "From a call's arrival at the queue to its first row's batch.",
        units.Seconds,
        _quantiles("serendip_batch_wait_seconds"),
    ),
    Panel(
        "Rows that wait",
        "Depth of the batchers' queues, over all processes.",
        units.Short,
        (Query(gauge("serendip_batch_waiting_rows"), "waiting"),),
    ),
    Panel(
        "User cache, hit ratio",
        "Share of histories whose vector was kept from an earlier request.",
        units.PercentUnit,
        (
            Query(
                ratio(
                    rate("serendip_user_cache_hits_total"),
                    f"({rate('serendip_user_cache_hits_total')} + "
                    f"{rate('serendip_user_cache_misses_total')})",
                ),
                "hits",
            ),
        ),
    ),
    Panel(
        "Rows refused and dropped",
        "Refused: the queue was full, the wait too long, or late. Dropped: the caller had gone.",
        units.RowsPerSecond,
        (
            Query(rate("serendip_batch_refused_rows_total", ("reason",)), "refused, {{reason}}"),
            Query(rate("serendip_batch_dropped_rows_total", ("reason",)), "dropped, {{reason}}"),
        ),
    ),
    Panel(
        "Retrievals that widened, or were of cold users",
        "Share of retrievals that went beyond the clusters asked for, or knew no item of the user.",
        units.PercentUnit,
        tuple(
            Query(
                ratio(
                    rate(f"serendip_retrieve_{what}_total"),
                    rate("serendip_retrieve_candidates_count"),
                ),
                what,
            )
            for what in ("widened", "cold")
        ),
    ),
    Panel(
        "Candidates a retrieval",
        "Mean candidates found.",
        units.Short,
        (Query(mean("serendip_retrieve_candidates"), "candidates"),),
        width=12,
    ),
    Panel(
        "Withheld items",
        "Item IDs that the operator's file names; nothing where --withhold is not given.",
        units.Short,
        (Query(gauge("serendip_withheld_items", how="max"), "withheld"),),
        width=12,
        kind="stat",
    ),
)

RELEASES = (
    Panel(
        "Versions that are served",
        "Processes that answer from each version. Two of one kind: some have not gone over.",
        units.Short,
        (Query(gauge("serendip_artifact_info", ("tier", "kind", "version")), ""),),
        width=12,
        kind="table",
    ),
    Panel(
        "Since the last swap",
        "Seconds since the release that is served was swapped in, of the oldest process.",
        units.Seconds,
        (
            Query(
                f"time() - {gauge('serendip_reload_last_success_time_seconds', ('tier',), 'min')}",
                "{{tier}}",
            ),
        ),
        width=12,
    ),
    Panel(
        "Reloads",
        "Releases that were swapped in.",
        units.OpsPerSecond,
        (Query(rate("serendip_reloads_total", ("tier",)), "{{tier}}"),),
    ),
    Panel(
        "Reloads that failed",
        "Attempts at the current release that left the old one serving.",
        units.OpsPerSecond,
        (Query(rate("serendip_reload_failures_total", ("tier",)), "{{tier}}"),),
    ),
    Panel(
        "Files that could not be read",
        "Withheld items, tokens, certificates that had changed: the last good ones hold.",
        units.OpsPerSecond,
        tuple(
            Query(rate(f"serendip_{what}_failures_total", ("tier",)), f"{what}, {{{{tier}}}}")
            for what in ("withhold", "tokens", "upstream_token", "tls")
        ),
    ),
)

ROWS = {
    "Overview": OVERVIEW,
    "Planner": PLANNER,
    "Retriever": RETRIEVER,
    "Releases": RELEASES,
}


# --- Grafana's JSON ----------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    whole = (
        build.Dashboard("Serendip: latency, plans, retrievals, releases")
        .uid("serendip-latency")
        .description("Both tiers, over all their worker processes.")
        .tags(["serendip"])
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            build.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_labels("job", 'label_values(up{job=~"serendip.+"}, job)'))
        .with_variable(_labels("instance", 'label_values(up{job=~"$job"}, instance)'))
    )
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        whole.with_row(build.Row(title).id(number).grid_pos(models.GridPos(1, 24, 0, y)))
        y, x = y + 1, 0
        for panel in panels:
            number += 1
            if x + panel.width > _ACROSS:
                x, y = 0, y + _HEIGHT
            position = models.GridPos(_HEIGHT, panel.width, x, y)
            whole.with_panel(_built(panel).id(number).grid_pos(position))
            x += panel.width
        y += _HEIGHT
    said: dict[str, Any] = json.loads(JSONEncoder().encode(whole.build()))
    return said


def text() -> str:
    """What FILE holds."""
    return json.dumps(dashboard(), indent=1, sort_keys=True) + "\n"


def _labels(name: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(name.capitalize())
        .datasource(_SOURCE)
        .query(query)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _built(panel: Panel) -> Any:
    made: Any = {"timeseries": timeseries, "stat": stat, "table": table}[panel.kind].Panel()
    made.title(panel.title).description(panel.description).unit(panel.unit).datasource(_SOURCE)
    for at, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + at))
        if panel.kind == "table":
            target.instant().format("table")
        else:
            target.range().legend_format(query.legend)
        made.with_target(target.datasource(_SOURCE))
    if panel.kind == "timeseries":
        made.min(0).fill_opacity(10).legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        if panel.stacked:
            made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    elif panel.kind == "stat":
        made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return made


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
