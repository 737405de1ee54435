"""The metrics of a snapshot, and a page of metrics as Prometheus reads it.

What the Redis servers know is on the page of every receiver and every worker, so it is available as long as one of them
lives: take its `max`, not its `sum`. If a server does not answer, only its `presence_redis_up` 0 is shown.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from shared.gateways.view import Gateways, State
from shared.observe.counters import LAG_BOUNDS_MS
from shared.observe.snapshot import Snapshot
from shared.truth.ledger import KINDS, Ledger

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Collected:
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def page(metrics: Iterable[Metric]) -> bytes:
    """In Prometheus' text format."""
    return generate_latest(_Collected(metrics))


def gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def histogram(
    name: str, help_text: str, bounds: Sequence[float], counts: Sequence[int], total_seconds: float
) -> Metric:
    """bounds: in seconds, without the infinite one. counts: not cumulated, one more than the bounds."""
    names = (*map(str, bounds), "+Inf")
    buckets = list(zip(names, map(float, accumulate(counts)), strict=True))
    return HistogramMetricFamily(name, help_text, buckets=buckets, sum_value=total_seconds)


def of_snapshot(snapshot: Snapshot, queue_up: bool = True, presence_up: bool = True) -> Iterator[Metric]:
    """queue_up, presence_up: False if this program has trouble with a server that answers, such as a full one."""
    queue, presence = snapshot.queue, snapshot.presence
    up = GaugeMetricFamily("presence_redis_up", "1 if the server answers and takes what we write.", labels=["role"])
    up.add_metric(["queue"], float(queue_up and not queue.server.error))
    up.add_metric(["presence"], float(presence_up and not presence.server.error))
    yield up
    if not queue.server.error:
        yield gauge("presence_queue_jobs", "Batches of events that wait in the queue.", queue.jobs)
        yield gauge(
            "presence_queue_oldest_seconds",
            "How long the oldest event in the queue has waited.",
            seconds_since(queue.oldest_ms, snapshot.at_ms),
        )
        yield gauge("presence_workers", "Workers alive.", len(queue.workers))
        skew = GaugeMetricFamily(
            "presence_clock_skew_seconds",
            "The largest difference between a clock and that of the queue's server.",
            labels=["role"],
        )
        skew.add_metric(["receiver"], max((abs(each.skew_ms) / 1000 for each in queue.receivers), default=0.0))
        skew.add_metric(["worker"], max((abs(each.skew_ms) / 1000 for each in queue.workers), default=0.0))
        yield skew
        yield from _of_gateways(queue.gateways)
        yield from _of_ledger(queue.ledger, snapshot.at_ms)
        yield gauge("presence_failed_batches", "Batches that could not be applied: presence failed list.", queue.failed)
    yield from _of_ambiguous(snapshot)
    if stats := presence.known_stats:
        events = CounterMetricFamily("presence_events", "Events by outcome.", labels=["outcome"])
        for outcome, count in stats.outcomes.items():
            events.add_metric([outcome], count)
        yield events
        yield CounterMetricFamily("presence_changes", "Changes of a user's status.", value=stats.changes)
        yield histogram(
            "presence_lag_seconds",
            "From an event's receipt until it is applied.",
            [bound / 1000 for bound in LAG_BOUNDS_MS],
            stats.lags,
            stats.lag_seconds,
        )
        yield gauge("presence_users_online", "Users online.", stats.users_online)
        yield CounterMetricFamily(
            "presence_clock_ahead",
            "Events of gateways whose clock was ahead; one whose batch is applied twice counts twice.",
            value=stats.clock_ahead,
        )


def _of_gateways(gateways: Gateways) -> Iterator[Metric]:
    batches = CounterMetricFamily(
        "presence_gateway_batches", "Batches of callbacks, by OpenIM's own numbers.", labels=["outcome"]
    )
    batches.add_metric(["heard"], gateways.heard)
    batches.add_metric(["lost"], gateways.lost)
    yield batches
    states = GaugeMetricFamily("presence_gateways", "OpenIM's gateway processes of the last day.", labels=["state"])
    for state in get_args(State):
        states.add_metric([state], sum(each.state == state for each in gateways.processes))
    yield states


def _of_ledger(ledger: Ledger, now_ms: int) -> Iterator[Metric]:
    """Nothing if presence was never compared with OpenIM."""
    if not ledger.compared_at_ms:
        return
    drift = GaugeMetricFamily(
        "presence_drift_users", "Users who differed from OpenIM in the last whole comparison.", labels=["kind"]
    )
    put_right = CounterMetricFamily("presence_reconciled", "Users put right after OpenIM was asked.", labels=["kind"])
    for kind in KINDS:
        drift.add_metric([kind], ledger.found[kind])
        put_right.add_metric([kind], ledger.put_right[kind])
    yield from (drift, put_right)
    yield gauge(
        "presence_reconcile_age_seconds",
        "Since the last whole comparison with OpenIM.",
        seconds_since(ledger.compared_at_ms, now_ms),
    )


def _of_ambiguous(snapshot: Snapshot) -> Iterator[Metric]:
    queue, presence = snapshot.queue, snapshot.presence
    counts: dict[str, int] = {**presence.known_stats.ambiguous} if presence.known_stats else {}
    if not queue.server.error:
        counts |= queue.ledger.doubtful
    ambiguous = CounterMetricFamily(
        "presence_ambiguous_batches",
        "Users of whom a batch said that a platform came and went: how it was read, and if OpenIM was asked.",
        labels=["outcome"],
    )
    for outcome, count in counts.items():
        ambiguous.add_metric([outcome], count)
    yield ambiguous


def of_log(lines_dropped: float) -> Metric:
    """Of one program, or of all its processes."""
    return CounterMetricFamily(
        "presence_log_lines_dropped", "Log lines left out because nothing read them in time.", value=lines_dropped
    )


def seconds_since(then_ms: int, now_ms: int | None = None) -> float:
    """From then to now, both Unix milliseconds; 0 if there was no such moment."""
    if now_ms is None:
        now_ms = time.time_ns() // 1_000_000
    return max(0, now_ms - then_ms) / 1000 if then_ms else 0.0
