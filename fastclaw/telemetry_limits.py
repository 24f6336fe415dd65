"""Bounds of logs in files, of the journal and of metrics, as limits.py has the others."""

from fastclaw.limits import KIB, MIB

METRICS_REQUEST_BYTES = 16 * KIB
"""Header of who asks for metrics: h11's own default."""

METRICS_CLIENTS = 16
"""Who asks for metrics at a time; a scraper has one connection."""

METRICS_MS = 10_000
"""From a connection to the last byte of its answer: Prometheus's own default deadline."""

TRACES_QUEUE = 2_048
"""Spans that wait to be sent where `OTEL_BSP_MAX_QUEUE_SIZE` does not say: the SDK's own default, some 5 MB."""

TRACES_NAME_CHARACTERS = 255
"""Of a program's name in a span: no file has a longer one (NAME_MAX)."""

TRACES_FLUSH_MS = 2_000
"""At the end, what a collector may take for the rest: as long as a log (`LOG_FLUSH_MS`)."""

USAGE_ROWS = 512
"""Processes in one question of what they take: some 10 µs each, within one frame."""

USAGE_BYTES = USAGE_ROWS * 40
"""The answer to it."""

USAGE_MS = 1_000
"""For that answer, which takes some ms: nobody who looks waits for one that is held up."""

USAGE_TRIES = 3
"""In a row without an answer, after which a spawner is not asked any more: each may hold a pump for ever, as where root
inside has put a file system of its own over /proc."""

JOURNAL_BYTES = 64 * MIB
"""Default of `journal_max_bytes`: some 250 000 calls before the file is rotated."""

JOURNAL_LINE_BYTES = 64 * KIB
"""What is longer is no line of a journal: ours have some 300 bytes."""

TRACE_CALLS = 100_000
"""Default of `fastclaw trace --last`: some 100 MB of JSON, which Perfetto's page takes half a minute to open."""

LOG_FILES = 4
"""A log and its predecessors `.1` to `.3`: as logrotate's own default."""

LOG_QUEUE = 1_024
"""Lines that wait to be written: a fifth of a second's worth at full speed, some 400 KB."""

LOG_FLUSH_MS = 2_000
"""At the end, what a log may take to write the rest: as long as the last answers (`FINAL_FLUSH_MS`)."""
