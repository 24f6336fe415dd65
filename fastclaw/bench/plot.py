"""What was found as a picture: a PNG, or one page of HTML that needs nothing from anywhere.

Latency by percentile, where the time of an operation goes, and each second: how many, and how long they took.
"""

from __future__ import annotations

import html
import io
import math
from itertools import cycle
from typing import IO, TYPE_CHECKING

from hdrh.histogram import HdrHistogram
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from fastclaw.bench.report import outside_us, time_text, title_of, to_json, to_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastclaw.bench.histogram import Latencies
    from fastclaw.bench.recorder import Recorder, Second
    from fastclaw.bench.report import Report

_INCHES = (11, 9)
_DPI = 110
_STEPS = 24
"""Points of the curve for each nine of its percentiles."""

_MOMENT_S = 0.25
"""Of a second: what ended within less says little about a rate."""

_COLORS = ("#1f5fa8", "#d9822b", "#5a9e6f", "#8e5ea2", "#7f7f7f")
_STAGE_COLORS = (*_COLORS[1:4], "#c9a227", "#3f8f8b", "#b0557a", "#6b7fb3", "#a06a4a", "#84a84f", "#4b5d73", "#cf8f8f")
_FAILED, _FLOOR = "#c0392b", "#9aa0a6"
_TEXT_COLUMNS = 100
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}"
    "svg{width:100%;height:auto}pre{overflow-x:auto;background:#f5f5f5;padding:1rem;font-size:14px}"
)


def write_png(report: Report, recorder: Recorder, file: IO[bytes]) -> None:
    """Draw into a file."""
    figure = drawn(report, recorder)
    # Its font has not every letter that a runtime may call itself by.
    title = title_of(report).encode("ascii", "replace").decode()
    figure.suptitle(title, fontsize=13, parse_math=False)  # it is text, and no formula
    figure.savefig(file, format="png", dpi=_DPI)


def write_html(report: Report, recorder: Recorder, file: IO[bytes]) -> None:
    """The picture, the report as text and as JSON, on one page."""
    picture = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastclaw"}):
        drawn(report, recorder).savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :]
    title = html.escape(title_of(report))
    data = to_json(report).decode().strip().replace("<", "\\u003c")  # nothing that a runtime says may end the script
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{svg}\n'
        f"<pre>{html.escape(to_text(report, _TEXT_COLUMNS))}</pre>\n"
        f'<script type="application/json" id="report">{data}</script>\n</body></html>\n'
    )
    file.write(page.encode())


def drawn(report: Report, recorder: Recorder) -> Figure:
    """The picture."""
    figure = Figure(figsize=_INCHES, layout="constrained")
    has_stages = bool(report.measured.stages or report.measured.inside)
    rows = figure.subplots(4 if has_stages else 3, 1, height_ratios=[3, 1, 2, 2] if has_stages else [3, 2, 2])
    axes = list(rows)
    _percentiles(axes.pop(0), report, recorder)
    if has_stages:
        _stages(axes.pop(0), report)
    _throughput(axes.pop(0), report, recorder)
    _latency(axes.pop(0), recorder)
    return figure


def curve(latencies: Latencies) -> tuple[list[float], list[float]]:
    """Percentiles, as how many times rarer than all what is slower is, and their latencies in milliseconds; as far as
    there are samples behind them."""
    total = int(latencies.histogram.total_count)
    if not total:
        return [], []
    steps = int(math.log10(total) * _STEPS) + 1
    rarity = [10 ** (step / _STEPS) for step in range(steps)]
    return rarity, [_ms(found.us) for found in latencies.at(100 * (1 - 1 / one) for one in rarity)]


def _ms(us: float) -> float:
    """A scale of powers has no zero."""
    return max(us, 1) / 1000


def _percentiles(axes: Axes, report: Report, recorder: Recorder) -> None:
    series = {"whole": recorder.whole, **recorder.stages}
    for color, (name, latencies) in zip(_COLORS, series.items(), strict=False):
        rarity, ms = curve(latencies)
        if ms:
            axes.plot(rarity, ms, label=name, color=color, linewidth=2 if name == "whole" else 1.2)
    if report.floor is not None and report.floor.measured.latency.samples:
        told = report.floor.measured.latency.percentiles
        rarity = [1 / (1 - float(name[1:]) / 100) for name in told]
        ms = [_ms(found.us) for found in told.values()]
        axes.plot(rarity, ms, "o--", label="floor (the generator's own)", color=_FLOOR, markersize=4, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1, 2, *(10**nines for nines in range(1, 10))]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rarer, _: percentile_text(rarer)))
    axes.xaxis.set_minor_locator(NullLocator())
    _in_time(axes)
    _dress(axes, f"latency by percentile, {report.measured.right_percent:.2f} % right")


def percentile_text(rarer: float) -> str:
    """100 is p99."""
    return f"p{100 * (1 - 1 / rarer):.9g}"


def _in_time(axes: Axes) -> None:
    if not axes.get_lines():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: time_text(ms * 1000)))
    axes.yaxis.set_minor_locator(NullLocator())


def _dress(axes: Axes, title: str) -> None:
    """A title on the left, the legend on its right, outside of what is drawn."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(visible=True, alpha=0.25)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, names, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(names), fontsize=9, frameon=False
        )


def _stages(axes: Axes, report: Report) -> None:
    """On average, so that they add up: the calls as they are seen from here, and what the runtime says of itself."""
    measured = report.measured
    bars: dict[str, dict[str, float]] = {}
    if measured.stages:
        bars["calls"] = {name: stage.mean_us for name, stage in measured.stages.items()}
    if measured.inside:
        bars["inside"] = {**measured.inside, "outside": outside_us(measured)}
    colors = cycle(_STAGE_COLORS)
    for row, stages in enumerate(bars.values()):
        left = 0.0
        for name, us in stages.items():
            color = _FLOOR if (row, name) == (len(bars) - 1, "outside") else next(colors)
            axes.barh([-row], [us / 1000], left=left, color=color, label=f"{name} {time_text(us)}")
            left += us / 1000
    axes.set_yticks([-row for row in range(len(bars))], list(bars))
    axes.margins(x=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: time_text(ms * 1000)))
    axes.set_title("where the time goes, on average", fontsize=11, loc="left")
    axes.grid(visible=True, axis="x", alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.28), ncols=6, fontsize=9, frameon=False)


def spans(seconds: list[Second], length_s: float) -> list[tuple[float, float, int, int]]:
    """Where each second begins, how long it was, right and failed; one that is but a moment goes to the one before."""
    found: list[tuple[float, float, int, int]] = []
    for one in seconds:
        long = min(1.0, max(0.0, length_s - one.at))
        if long < _MOMENT_S and found and found[-1][0] + found[-1][1] == one.at:
            at, before, right, failed = found.pop()
            found.append((at, before + long, right + one.right, failed + one.failed))
        else:
            found.append((float(one.at), max(long, _MOMENT_S), one.right, one.failed))
    return found


def _throughput(axes: Axes, report: Report, recorder: Recorder) -> None:
    bars = spans(recorder.seconds, _length_s(recorder))
    at, widths = [bar[0] for bar in bars], [bar[1] * 0.95 for bar in bars]
    right, failed = ([bar[which] / bar[1] for bar in bars] for which in (2, 3))
    axes.bar(at, right, width=widths, align="edge", color=_COLORS[0], label="right")
    if report.measured.failed:
        axes.bar(at, failed, width=widths, align="edge", bottom=right, color=_FAILED, label="failed")
    axes.set_xlim(0, _length_s(recorder))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("a second")
    _dress(axes, "operations that ended")


def _latency(axes: Axes, recorder: Recorder) -> None:
    length_s = _length_s(recorder)
    kept = [(one, HdrHistogram.decode(one.encoded)) for one in recorder.seconds if one.encoded]
    at = [one.at + min(1.0, length_s - one.at) / 2 for one, _ in kept]
    if kept:
        for share, color in ((50, _COLORS[0]), (99, _COLORS[1])):
            ms = [_ms(histogram.get_value_at_percentile(share)) for _, histogram in kept]
            axes.plot(at, ms, "o-", markersize=3, color=color, label=f"p{share}")
        axes.plot(at, [_ms(one.max_us) for one, _ in kept], "o:", markersize=3, color=_FLOOR, label="max")
    _in_time(axes)
    axes.set_xlim(0, length_s)
    axes.set_xlabel("seconds from the first operation that counts")
    _dress(axes, "latency of those that ended in each second")


def _length_s(recorder: Recorder) -> float:
    return max((recorder.last_ns - recorder.first_ns) / 1e9, _MOMENT_S)
