"""/metrics: the board and the fleet's numbers in Prometheus text. Collected when asked; nothing is counted twice."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from headway import __version__
from headway.server.board import Board

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# key of /stats -> (metric, help)
_GAUGES = {
    "kv_pages_total": ("headway_kv_pages_total", "KV pages of the pool"),
    "kv_pages_used": ("headway_kv_pages_used", "KV pages held by sequences"),
    "kv_pages_cached": ("headway_kv_pages_cached", "KV pages kept for prefixes only"),
    "open_requests": ("headway_fleet_open_requests", "Sequences open in the fleet"),
    "queued_requests": ("headway_fleet_queued_requests", "Sequences held by the router"),
}


class FrontCollector:
    """Reads the board and the fleet's stats at scrape time."""

    def __init__(self, board: Board, fleet_stats: Callable[[], dict[str, Any]]) -> None:
        self._board = board
        self._fleet_stats = fleet_stats

    def collect(self) -> Iterable[Metric]:
        board = self._board
        build = GaugeMetricFamily("headway_build_info", "1, labelled with the version", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        stats = self._fleet_stats()
        for key, (name, text) in _GAUGES.items():
            if isinstance(stats.get(key), (int, float)):
                yield GaugeMetricFamily(name, text, value=stats[key])
        yield GaugeMetricFamily("headway_http_open_requests", "Generation requests open over HTTP", value=board.open_requests)
        yield CounterMetricFamily("headway_generated_tokens", "Tokens handed to clients", value=board.tokens)
        yield CounterMetricFamily("headway_prompt_tokens", "Prompt tokens of accepted requests", value=board.prompt_tokens)
        yield from self._by_class()
        replies = CounterMetricFamily("headway_http_replies", "Replies by status", labels=["status"])
        for status, count in board.replies.items():
            replies.add_metric([str(status)], count)
        yield replies
        errors = CounterMetricFamily("headway_http_errors", "Error replies and events by code", labels=["code"])
        for code, count in board.refusals.items():
            errors.add_metric([code], count)
        yield errors

    def _by_class(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("headway_open_sequences", "Sequences open, by class", labels=["class"])
        ended = CounterMetricFamily("headway_sequences_ended", "Sequences by class and how they ended", labels=["class", "ended"])
        promises = CounterMetricFamily("headway_promises", "Scored sequences by class and outcome", labels=["class", "outcome"])
        slack = GaugeMetricFamily("headway_slack_seconds", "Time until the most urgent token of a class is due", labels=["class"])
        for cls, counts in self._board.classes.items():
            running.add_metric([cls], counts.open)
            for how, count in counts.ended.items():
                ended.add_metric([cls, how], count)
            promises.add_metric([cls, "on_time"], counts.on_time)
            promises.add_metric([cls, "late"], counts.late)
        for name, milliseconds in self._board.slack_ms().items():
            slack.add_metric([name], milliseconds / 1e3)
        yield from (running, ended, promises, slack)


def render(board: Board, fleet_stats: Callable[[], dict[str, Any]]) -> bytes:
    """The text of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FrontCollector(board, fleet_stats))
    return generate_latest(registry)
