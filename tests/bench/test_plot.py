"""Pictures: what is drawn is what was measured; a page of HTML needs nothing, and runs nothing that a runtime says."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from msgspec import structs

from fastclaw.bench.plot import curve, drawn, percentile_text, spans, write_html, write_png
from fastclaw.bench.recorder import Ended, Recorder, Second
from tests.bench.test_report import measured, report
from tests.engine_fixtures import unusable

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.bench.report import Report

SECOND = 1_000_000_000
PNG = b"\x89PNG\r\n\x1a\n"
NASTY = {"name": "</script><script>alert(1)</script> $\\frac{ \x1b[2J 名前", "version": "<b>"}


@pytest.fixture(scope="module", autouse=True)
def _fonts() -> None:
    """The library opens its fonts with the first picture, and keeps them open."""
    write_png(report(), recorded(), io.BytesIO())


def recorded(*, stages: bool = True) -> Recorder:
    recorder = Recorder(keeps_histograms=True)
    recorder.count_from(0)
    for number in range(1, 3_001):
        ended = number * 1_000_000
        told = (("exec", number * 400), ("wait", number * 300)) if stages else ()
        recorder.took(ended - number * 700, Ended(ended, told))
        if number % 10 == 0:
            recorder.went_wrong(ended - 5, ended, "no_answer")
    recorder.close()
    return recorder


def page(one: Report, recorder: Recorder) -> str:
    file = io.BytesIO()
    write_html(one, recorder, file)
    return file.getvalue().decode()


def panels(one: Report, recorder: Recorder) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in drawn(one, recorder).axes}


def test_each_panel_draws_what_was_measured() -> None:
    drawn_panels = panels(report(), recorded())
    assert [title.split(",")[0] for title in drawn_panels] == [
        "latency by percentile",
        "where the time goes",
        "operations that ended",
        "latency of those that ended in each second",
    ]
    percentiles, stages, ended, latency = drawn_panels.values()
    labels = [line.get_label() for line in percentiles.get_lines()]
    assert labels == ["whole", "exec", "wait", "floor (the generator's own)"]
    widths = [round(bar.get_width(), 1) for bar in stages.patches]
    assert widths == [0.5, 2.0, 0.3, 0.5, 0.7]  # the calls; inside the runtime and outside: as the report says
    assert [tick.get_text() for tick in stages.get_yticklabels()] == ["calls", "inside"]
    heights = [round(bar.get_height()) for bar in ended.patches]
    assert heights[:3] == [999, 1000, 1001]
    assert sum(heights[3:]) == 300
    assert [line.get_label() for line in latency.get_lines()] == ["p50", "p99", "max"]


def test_a_load_without_stages_has_no_panel_for_them() -> None:
    one = report(measured=measured(stages={}, inside={}, failed={}), floor=None)
    titles = list(panels(one, recorded(stages=False)))
    assert len(titles) == 3
    assert not any("where the time goes" in title for title in titles)


def test_the_curve_goes_as_far_as_there_are_samples() -> None:
    rarity, ms = curve(recorded().whole)
    assert len(rarity) == len(ms)
    assert 10**3 < rarity[-1] <= 3_000
    assert ms == sorted(ms)
    assert ms[-1] <= 3_000 * 700 / 1e6 * 1.001
    assert curve(Recorder().whole) == ([], [])


@pytest.mark.parametrize(("rarer", "text"), [(1, "p0"), (2, "p50"), (10, "p90"), (1_000, "p99.9"), (10**6, "p99.9999")])
def test_percentiles_as_text(rarer: float, text: str) -> None:
    assert percentile_text(rarer) == text


def second(at: int, right: int, failed: int = 0) -> Second:
    return Second(at=at, right=right, failed=failed)


def test_a_moment_goes_to_the_second_before() -> None:
    assert spans([second(0, 10), second(1, 5, 1)], 1.125) == [(0.0, 1.125, 15, 1)]
    assert spans([second(0, 10), second(1, 5)], 1.5) == [(0.0, 1.0, 10, 0), (1.0, 0.5, 5, 0)]
    assert spans([second(0, 10), second(7, 5)], 7.01) == [(0.0, 1.0, 10, 0), (7.0, 0.25, 5, 0)]  # nothing in between
    assert spans([second(0, 3)], 0.001) == [(0.0, 0.25, 3, 0)]
    assert spans([], 0.0) == []


@pytest.mark.parametrize("server", [{"name": "fastclaw"}, NASTY, None, {"name": 5}])
def test_a_png_is_one(server: dict[str, Any] | None) -> None:
    file = io.BytesIO()
    write_png(report(server=server), recorded(), file)
    assert file.getvalue().startswith(PNG)


def test_nothing_measured_is_drawn_too() -> None:
    empty = Recorder(keeps_histograms=True)
    one = report(measured=structs.replace(measured(), latency=empty.whole.summary(), stages={}, inside={}), floor=None)
    file = io.BytesIO()
    write_png(one, empty, file)
    assert file.getvalue().startswith(PNG)


class Tags(HTMLParser):
    """What a page loads or runs."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [str(given[name]) for name in ("src", "href", "xlink:href", "data") if name in given]
        if tag == "script":
            self.scripts.append(given.get("type"))


def test_a_page_needs_nothing_from_anywhere() -> None:
    text = page(report(server=NASTY, messages={"no_answer": "</script><b>"}), recorded())
    tags = Tags()
    tags.feed(text)
    assert [link for link in tags.loads if not link.startswith(("#", "data:,"))] == []
    assert re.findall(r"url\((?!#)[^)]*\)", text) == []
    assert tags.scripts == ["application/json"]
    told = json.loads(text[text.index('id="report">') + len('id="report">') : text.index("</script>\n</body>")])
    assert told["server"] == NASTY
    svg = text[text.index("<svg") : text.index("</svg>") + len("</svg>")]
    ElementTree.fromstring(svg)


def test_the_same_measurement_is_the_same_page() -> None:
    recorder = recorded()
    assert page(report(), recorder) == page(report(), recorder)


def browser() -> str:
    found = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if found is None:
        unusable("there is no chromium; run: scripts/get-browser")
    return found


def test_a_browser_shows_it_without_a_complaint(tmp_path: Path) -> None:
    file, shot = tmp_path / "page.html", tmp_path / "page.png"
    file.write_text(page(report(server=NASTY), recorded()))
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,1600"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", file.as_uri()]
    done = subprocess.run([browser(), *switches, *where], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    seen = shot.read_bytes()
    assert seen.startswith(PNG)
    assert len(seen) > 30_000  # an empty page is 5 000


def test_a_browser_that_complains_would_be_heard(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text('<script>console.error("x"); nonsense()</script>')
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    done = subprocess.run([browser(), *switches, *where], capture_output=True, text=True, timeout=100, check=False)
    assert len([line for line in done.stderr.splitlines() if "CONSOLE" in line]) == 2
