"""What a runtime counts, in the words of Prometheus (https://prometheus.io/docs/practices/naming): base units, no ids.

Pure. Loads prometheus_client, so it is to be imported where metrics are asked for only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from fastclaw.latency import TOTAL, Histogram, highest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric

    from fastclaw.latency import Latency
    from fastclaw.telemetry.metrics import Counts

BOUNDS_US = tuple(round(base * 10**power) for power in range(1, 8) for base in (1, 2.5, 5))
"""Upper bounds of the buckets, from 10 us to 50 s."""


def buckets(histograms: Iterable[Histogram]) -> list[tuple[str, float]]:
    """Up to each bound how many durations there are, as Prometheus wants them: cumulated, and the last is all."""
    counts = [0] * (len(BOUNDS_US) + 1)
    for histogram in histograms:
        for part, count in histogram.counts.items():
            counts[next((at for at, bound in enumerate(BOUNDS_US) if highest(part) <= bound), -1)] += count
    names = [*(repr(bound / 1e6) for bound in BOUNDS_US), "+Inf"]
    upto, told = 0, []
    for name, count in zip(names, counts, strict=True):
        upto += count
        told.append((name, float(upto)))
    return told


class Collector:
    """All metrics of a runtime, as prometheus_client asks for them.

    Parameters:
        latency: of its calls.
        counts: what there is now.
    """

    def __init__(self, latency: Latency, counts: Counts) -> None:
        self._latency, self._counts = latency, counts

    def collect(self) -> Iterator[Metric]:
        """Each of them."""
        execs: dict[tuple[str, ...], list[Histogram]] = {}
        starts: dict[tuple[str, ...], list[Histogram]] = {}
        ended: dict[tuple[str, ...], int] = {}
        for key, histogram in self._latency.histograms():
            if key.method == "environment_start":
                starts.setdefault((key.lane, key.stage), []).append(histogram)
                continue
            execs.setdefault((key.method, key.lane, key.stage), []).append(histogram)
            if key.stage == TOTAL:
                ended[key.method, key.outcome] = ended.get((key.method, key.outcome), 0) + histogram.count
        text = "To each stage from the one before it."
        yield _durations("fastclaw_exec_duration", text, ["method", "lane", "stage"], execs)
        yield _durations("fastclaw_environment_start_duration", text, ["lane", "stage"], starts)
        text = "Calls of exec and run that were answered, and of which it is known how they ended."
        counter = CounterMetricFamily("fastclaw_execs", text, labels=["method", "reason"])
        for labels, count in ended.items():
            counter.add_metric(labels, count)
        yield counter
        environments = GaugeMetricFamily("fastclaw_environments", "Environments, by state.", labels=["state"])
        for state, count in self._counts.environments.items():
            environments.add_metric([state], count)
        yield environments
        yield GaugeMetricFamily("fastclaw_processes", "Processes that run.", self._counts.processes)
        yield GaugeMetricFamily("fastclaw_queue_length", "Starts that wait for their turn.", self._counts.waiting)
        text = "What the egress proxy has decided, by the words of its log."
        decisions = CounterMetricFamily("fastclaw_egress_decisions", text, labels=["decision", "reason"])
        for decided, count in self._counts.egress.items():
            decisions.add_metric(decided, count)
        yield decisions
        build = GaugeMetricFamily("fastclaw_build_info", "The version.", labels=["version"])
        build.add_metric([self._counts.version], 1)
        yield build


def _durations(
    name: str, text: str, labels: list[str], of: dict[tuple[str, ...], list[Histogram]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"{name}_seconds", text, labels=labels)
    for values, histograms in sorted(of.items()):
        seconds = sum(histogram.sum_us for histogram in histograms) / 1e6
        family.add_metric(values, buckets(histograms), seconds)
    return family


def exposed(latency: Latency, counts: Counts, accepted: str) -> tuple[bytes, str]:
    """The text, and its content type.

    Parameters:
        accepted: the header `Accept` of who asks.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(latency, counts))
    encode, content_type = choose_encoder(accepted)
    return encode(registry), content_type
