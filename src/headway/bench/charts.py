"""Inline SVG for the report: the two-lane picture, attainment bars with intervals, one bar a request, latency distributions.

Pure text; colours come from the page's CSS variables, so the page follows light and dark.
"""

from collections.abc import Sequence
from html import escape
from math import log10
from typing import Any

from headway.bench.outcome import Outcomes
from headway.bench.pauses import Lane, in_words

WIDTH = 960
_LEFT = 110


def two_lanes(lanes: Sequence[Lane]) -> str:
    """Token times of the same moment under each policy: a tick a token, a row a stream, a band while a document is read."""
    if not lanes:
        return "<p>No document met a running stream in every policy: there is no common moment to draw.</p>"
    plot, parts, top = WIDTH - _LEFT - 10, [], 8
    scale = plot / lanes[0].length_ns
    for lane in lanes:
        rows = max(1, len(lane.streams))
        height = rows * 18 + 10
        parts.append(f'<text x="0" y="{top + height / 2 + 4:.0f}" class="name">{escape(lane.name)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{plot}" height="{height}" class="lane"/>')
        for begin, end in lane.reading:
            parts.append(
                f'<rect x="{_LEFT + begin * scale:.1f}" y="{top}" width="{(end - begin) * scale:.1f}" height="{height}" class="reading"/>'
            )
        for row, times in enumerate(lane.streams):
            y = top + 6 + row * 18
            marks = "".join(f"M{_LEFT + at * scale:.1f} {y}v14" for at in times)
            parts.append(f'<path d="{marks}" class="tick"/>')
        if lane.longest is not None:
            parts.append(_pause_mark(lane, scale, top, height))
        top += height + 26
    axis = top
    step_ns = next(step for step in (100e6, 200e6, 500e6, 1e9, 2e9, 5e9) if lanes[0].length_ns / step <= 12 or step == 5e9)
    for k in range(int(lanes[0].length_ns / step_ns) + 1):
        x = _LEFT + k * step_ns * scale
        parts.append(f'<text x="{x:.0f}" y="{axis + 10}" class="axis" text-anchor="middle">{k * step_ns / 1e9:g} s</text>')
    return _svg(axis + 16, parts, "Token times of the chat streams while a document is read, one lane a policy")


def _pause_mark(lane: Lane, scale: float, top: int, height: int) -> str:
    pause = lane.longest
    if pause is None:
        return ""
    zero_ns = pause.document.scheduled_ns - 300_000_000
    begin, end = (_LEFT + max(0.0, (at - zero_ns) * scale) for at in (pause.begin_ns, pause.begin_ns + pause.gap_ns))
    y = top + height + 6
    end = min(end, WIDTH - 10.0)
    anchor, x = ("end", end) if begin > WIDTH * 0.6 else ("start", begin)
    return (
        f'<path d="M{begin:.1f} {y - 4}v8M{begin:.1f} {y}H{end:.1f}M{end:.1f} {y - 4}v8" class="pause"/>'
        f'<text x="{x:.1f}" y="{y + 15}" class="pause-text" text-anchor="{anchor}">longest pause {in_words(pause.gap_ns)}</text>'
    )


def attainment_bars(arms: dict[str, dict[str, Any]]) -> str:
    """Share of promises kept, by class and arm, with its 95 % interval. `arms[name]` is a summary of `score.summarise`."""
    parts, top = [], 4
    plot = WIDTH - _LEFT - 150
    classes = list(dict.fromkeys(cls for summary in arms.values() for cls in summary["classes"]))
    for cls in classes:
        for place, (name, summary) in enumerate(arms.items()):
            item = summary["classes"].get(cls)
            if item is None or item["attainment"] is None:
                continue
            share, low, high = item["attainment"], item["low"], item["high"]
            label = f"{cls}" if place == 0 else ""
            parts.append(f'<text x="0" y="{top + 14}" class="name">{escape(label)}</text>')
            parts.append(f'<rect x="{_LEFT}" y="{top}" width="{plot}" height="18" class="lane"/>')
            parts.append(f'<rect x="{_LEFT}" y="{top}" width="{plot * share:.1f}" height="18" class="bar arm{place}"/>')
            a, b, y = _LEFT + plot * low, _LEFT + plot * high, top + 9
            parts.append(f'<path d="M{a:.1f} {y}H{b:.1f}M{a:.1f} {y - 4}v8M{b:.1f} {y - 4}v8" class="interval"/>')
            text = f"{name} {item['met']}/{item['scheduled']} = {share:.0%}"
            parts.append(f'<text x="{_LEFT + plot + 8}" y="{top + 14}" class="axis">{escape(text)}</text>')
            top += 22
        top += 10
    return _svg(top, parts, "Promises kept by class with 95 % intervals")


def gantt(name: str, run: Outcomes, apps: Sequence[str], late: dict[tuple[str, int], bool | None]) -> str:
    """One bar a request in real time order: pale while waiting for the first token, solid while writing; red = promise missed."""
    if not run.requests:
        return ""
    zero_ns = run.start_ns
    length_ns = max(max(row.end_ns for row in run.requests) - zero_ns, 1)
    plot, parts, top = WIDTH - _LEFT - 10, [], 4
    scale = plot / length_ns
    for app in apps:
        free: list[float] = []
        rows = [row for row in run.requests if row.app == app]
        lines: list[str] = []
        for row in rows:
            begin, end = (row.scheduled_ns - zero_ns) * scale, (max(row.end_ns, row.scheduled_ns) - zero_ns) * scale
            track = next((k for k, busy in enumerate(free) if busy <= begin), len(free))
            if track == len(free):
                free.append(0.0)
            free[track] = end + 1
            first = (row.token_ns[0] - zero_ns) * scale if row.token_ns else end
            y = top + track * 9
            kind = {True: "kept", False: "missed", None: "open"}[late.get((app, row.index))]
            title = f"{app} {row.index}: {row.outcome}, {len(row.token_ns)} tokens {row.reason}".strip()
            wait, wrote = max(1.0, first - begin), max(0.0, end - first)
            bars = f'<rect x="{_LEFT + begin:.1f}" y="{y}" width="{wait:.1f}" height="7" class="wait"/>'
            bars += f'<rect x="{_LEFT + first:.1f}" y="{y}" width="{wrote:.1f}" height="7"/>'
            lines.append(f'<g class="{kind}"><title>{escape(title)}</title>{bars}</g>')
        height = max(1, len(free)) * 9
        parts.append(f'<text x="0" y="{top + min(height, 14)}" class="name">{escape(app)}</text>')
        parts += lines
        top += height + 8
    return f"<h3>{escape(name)}</h3>" + _svg(top, parts, f"Requests of {name} over {length_ns / 1e9:.0f} s")


def distribution(title: str, arms: dict[str, list[float]], limit_s: float | None) -> str:
    """Share of requests that were at most this slow (seconds, log axis); `limit_s` is the promise."""
    values = sorted(value for group in arms.values() for value in group if value > 0)
    if not values:
        return ""
    low, high = log10(values[0]) - 0.1, log10(max(values[-1], limit_s or 0)) + 0.1
    width, height, left = 460, 150, 34
    parts = [f'<rect x="{left}" y="6" width="{width - left - 6}" height="{height}" class="lane"/>']

    def x(value: float) -> float:
        return left + (log10(max(value, 1e-9)) - low) / (high - low) * (width - left - 6)

    if limit_s:
        parts.append(f'<path d="M{x(limit_s):.1f} 6v{height}" class="limit"/>')
        side, anchor = (3, "start") if x(limit_s) < width * 0.6 else (-3, "end")
        place_x = x(limit_s) + side
        parts.append(f'<text x="{place_x:.1f}" y="18" class="axis" text-anchor="{anchor}">promise {in_words(limit_s * 1e9)}</text>')
    for place, (name, group) in enumerate(arms.items()):
        ordered = sorted(group)
        if not ordered:
            continue
        path = f"M{x(ordered[0]):.1f} {6 + height}"
        for k, value in enumerate(ordered, start=1):
            path += f"H{x(value):.1f}V{6 + height * (1 - k / len(ordered)):.1f}"
        parts.append(f'<path d="{path}" class="curve arm{place}"><title>{escape(name)}</title></path>')
    for exponent in range(-4, 3):
        for factor in (1, 3):
            value = factor * 10.0**exponent
            if low <= log10(value) <= high:
                parts.append(f'<text x="{x(value):.0f}" y="{height + 20}" class="axis" text-anchor="middle">{in_words(value * 1e9)}</text>')
    parts.append(f'<text x="0" y="14" class="axis">100 %</text><text x="8" y="{height + 6}" class="axis">0 %</text>')
    return f"<figure><figcaption>{escape(title)}</figcaption>{_svg(height + 26, parts, title, width)}</figure>"


def _svg(height: float, parts: Sequence[str], label: str, width: int = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
