"""A log of histograms, format 1.3 (https://hdrhistogram.github.io/HdrHistogram): one of each second, one of each stage.

Written by hand: the library's own writer says 1.2, cuts maxima to whole units, and fails at the time of the start.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastclaw.bench.recorder import Recorder

_LEGEND = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
_US_PER_UNIT = 1_000
"""Of the column of maxima, which is in milliseconds by convention; in the histograms are microseconds."""


def lines(recorder: Recorder, started_at: float) -> Iterator[str]:
    """The log of a measurement.

    Parameters:
        started_at: when the first operation that counts began, in seconds since 1970.
    """
    yield "#[Values in the histograms are microseconds]"
    yield "#[Histogram log format version 1.3]"
    when = datetime.fromtimestamp(started_at, UTC).strftime("%a %b %d %H:%M:%S UTC %Y")
    yield f"#[StartTime: {started_at:.3f} (seconds since epoch), {when}]"
    yield f"#[BaseTime: {started_at:.3f} (seconds since epoch)]"
    yield _LEGEND
    length_s = (recorder.last_ns - recorder.first_ns) / 1e9
    for name, stage in recorder.stages.items():
        histogram = stage.histogram
        yield f"Tag={name.replace(' ', '_')},{_row(0.0, length_s, histogram.max_value, histogram.encode())}"
    for second in recorder.seconds:
        if second.encoded:
            yield _row(second.at, max(0.001, min(1.0, length_s - second.at)), second.max_us, second.encoded)


def _row(start_s: float, length_s: float, max_us: int, encoded: bytes) -> str:
    return f"{start_s:.3f},{length_s:.3f},{max_us / _US_PER_UNIT:.3f},{encoded.decode()}"
