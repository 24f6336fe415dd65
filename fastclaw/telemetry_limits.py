"""Bounds of logs in files, journal, metrics, what processes take and the control socket, as limits.py has others."""

from fastclaw.limits import KIB, MIB

METRICS_REQUEST_BYTES = 16 * KIB
"""Header of who asks for metrics: h11's own default."""

METRICS_CLIENTS = 16
"""Who asks for metrics at a time; a scraper has one connection."""

METRICS_MS = 10_000
"""From a connection to the last byte of its answer: Prometheus's own default deadline."""

TRACESTATE_BYTES = 512
"""As much of a `tracestate` as W3C Trace Context has everybody pass on at the least."""

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

# --- The control socket -----------------------------------------------------------------------------

CONTROL_CLIENTS = 16
"""Screens that look at one runtime at a time: each may hold one answer, some 200 KB, that it does not read."""

CONTROL_LINE_BYTES = 16 * KIB
"""One request: a filter and a process id are some hundred bytes."""

CONTROL_ROWS = 500
"""Rows of one answer: more than any screen has, and each is measured, some 20 µs."""

CONTROL_TEXT_CHARS = 256
"""Of a command line in an answer, and of a filter: what the widest screens show."""

CONTROL_RATE_MS = 200
"""Between two looks whose difference says something: the kernel counts processor time in ticks of 10 ms."""

CONTROL_RANK_PERCENT = 2
"""Of one processor, for measuring all processes where the order is by usage: 5 000 take some 120 ms."""

CONTROL_RANK_SHARE = 3
"""How much that takes for each part of it that is seen here: a spawner takes twice as much as asking it."""

CONTROL_IDLE_MS = 60_000
"""A client that asks nothing for so long is disconnected: a screen asks every few seconds."""

CONTROL_WRITE_MS = 2_000
"""For a client to take an answer, or it is disconnected. A Unix socket takes a whole one in a millisecond."""

CONTROL_KILL_MS = 60_000
"""For a kill to be answered: any grace that a person waits for, and what follows it."""

CONTROL_CLOSE_MS = 1_000
"""For answers that are being made when the runtime ends."""

CONTROL_ANSWER_BYTES = 4 * MIB
"""One answer, for who reads it: `CONTROL_ROWS` rows of some hundred bytes, each with a command of 256 characters."""

CONTROL_ANSWER_MS = 5_000
"""A client's wait for an answer that measures: milliseconds; a runtime that is busy takes turns of its own."""
