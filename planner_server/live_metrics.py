"""What live planning does, as metrics. Knows no queue and no worker."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from serendip.serving.telemetry import SECONDS, BatchMetrics

STAGES = ("media", "encode", "prefill", "reasoning", "answer")


class LiveMetrics:
    """The collectors of live planning; make one a registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry if registry is not None else CollectorRegistry()
        self.batch = BatchMetrics(registry, "serendip_live", rows="batch_rows")
        seconds = Histogram(
            "serendip_live_seconds",
            "Seconds of a batch in the live worker, by stage.",
            ("stage",),
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = {stage: seconds.labels(stage) for stage in STAGES}
        self.shared = Counter(
            "serendip_live_shared",
            "Requests for a live plan that another one was making already.",
            registry=registry,
        )
        self.restarts = Counter(
            "serendip_live_worker_restarts",
            "Live workers that were started in place of one that died.",
            registry=registry,
        )
        self.kept = Counter(
            "serendip_live_kept",
            "Live plans that were kept for later calls and the next bulk run.",
            registry=registry,
        )
        self.keep_failures = Counter(
            "serendip_live_keep_failures",
            "Writes of kept live plans that failed; the plans themselves were answered.",
            registry=registry,
        )

    def ran(self, seconds: Mapping[str, float]) -> None:
        """Shows a batch's seconds by stage."""
        for stage, took_s in seconds.items():
            if stage in self._stages:
                self._stages[stage].observe(took_s)
