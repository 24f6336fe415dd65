"""The log of histograms is read by HdrHistogram's own reader, and holds what was measured."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from fastclaw.bench.hlog import lines
from fastclaw.bench.recorder import Ended, Recorder

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000
STARTED_AT = 1_796_024_824.25


def measured() -> Recorder:
    recorder = Recorder(keeps_histograms=True)
    recorder.count_from(7 * SECOND)
    for number in range(1, 2_501):  # over two seconds and a half
        began = 7 * SECOND + number * 1_000_000
        took = number * 1_000
        recorder.took(began - took, Ended(began, (("first byte", took // 2),)))
    recorder.close()
    return recorder


def test_its_lines_are_those_of_format_13() -> None:
    told = list(lines(measured(), STARTED_AT))
    assert "#[Histogram log format version 1.3]" in told
    assert "#[StartTime: 1796024824.250 (seconds since epoch), Mon Nov 30 07:47:04 UTC 2026]" in told
    rows = [line for line in told if not line.startswith(("#", '"'))]
    heads = [re.fullmatch(r"((?:Tag=\w+,)?[\d.]+,[\d.]+,[\d.]+),HIST[\w+/=]+", row) for row in rows]
    assert [head[1] for head in heads if head] == [
        "Tag=first_byte,0.000,2.500,1.250",
        "0.000,1.000,0.999",
        "1.000,1.000,1.999",
        "2.000,0.500,2.500",
    ]


def test_the_librarys_own_reader_gives_all_of_it_back(tmp_path: Path) -> None:
    recorder = measured()
    file = tmp_path / "a.hlog"
    file.write_text("".join(f"{line}\n" for line in lines(recorder, STARTED_AT)))
    reader = HistogramLogReader(str(file), HdrHistogram(1, 3_600_000_000, 3))
    try:
        stage = reader.get_next_interval_histogram()
        assert (stage.get_tag(), stage.total_count) == ("first_byte", 2_500)
        whole = HdrHistogram(1, 3_600_000_000, 3)
        starts = []
        while (interval := reader.get_next_interval_histogram()) is not None:
            whole.add(interval)
            starts.append(interval.get_start_time_stamp() / 1000)
    finally:
        reader.input_file.close()
    assert starts == [STARTED_AT, STARTED_AT + 1, STARTED_AT + 2]
    assert whole.total_count == recorder.right == 2_500
    for share in (50, 99, 99.9):
        assert whole.get_value_at_percentile(share) == recorder.whole.histogram.get_value_at_percentile(share)


def test_nothing_measured_is_a_head_alone() -> None:
    assert all(line.startswith(("#", '"')) for line in lines(Recorder(), STARTED_AT))
