"""The bounds of `fastclaw bench`: what it may hold, and how long it waits. Kept to as those of limits.py are."""

from fastclaw.limits import MIB

BENCH_AT_ONCE = 10_000
"""Operations under way, and processes held: each is a task, or two descriptors, of one process of ours."""

BENCH_RATE = 1_000_000
"""Operations begun in a second that may be asked for: far above what one process of Python can begin."""

BENCH_DURATION_S = 10
"""How long is measured unless it is said: some thousand operations of a millisecond, and a handful behind a p99.9."""

BENCH_MAX_DURATION_S = 86_400
"""How long at most: of each second a row is kept."""

BENCH_OPERATION_MS = 30_000
"""A call of an operation that is not answered within this has failed: as long as a client waits (CLIENT_CALL_MS)."""

BENCH_MAX_OPERATION_MS = 3_600_000
"""The longest latency that is told apart from longer ones."""

BENCH_CUT_OFF_MS = 1_000
"""After Ctrl-C: for operations under way, so that most are counted; whoever pressed it waits for the report."""

BENCH_SWEEP_MS = 50
"""Between two looks for calls whose deadline has passed: one timer for all of them instead of one each."""

BENCH_REASONS = 50
"""Reasons of failures that are told apart: a runtime may name a new one each time; the rest are counted together."""

BENCH_TIMINGS = 20
"""Stages of its own that a runtime may tell of in a record: ours has nine."""

BENCH_REASON_CHARS = 60
"""Of a reason that a runtime names."""

BENCH_LATE_IDS = 100_000
"""Calls that were given up and may yet be answered: what comes for older ones counts as an answer too many."""

BENCH_SOCKETS = 100_000
"""Sockets of the last operations that are looked for at the end: 20 MB of names."""

BENCH_ENVIRONMENTS = 10_000
"""Containers of the last environments that are looked for at the end."""

BENCH_FILE_BYTES = 16 * MIB
"""Of one file: what `read_file` gives at most in one answer."""

BENCH_HELD_BYTES = 1024 * MIB
"""Of the files of all operations under way: what a runtime does not read waits in our memory."""

BENCH_PING_BYTES = 64
"""Of one ping of a process that is held: a line."""

BENCH_GONE_MS = 2_000
"""After the end of the runtime, for the last of its processes: the kernel ends and reaps within milliseconds."""

BENCH_POLL_MS = 20
"""Pause between two looks at /proc, which sends no events."""

BENCH_FLOOR_MS = 500
"""Measured of the generator itself: some thousand operations, in less time than most runtimes take to come up."""

BENCH_TIMER_SHOTS = 200
"""Of the timer, half a millisecond apart, to say how late it is."""

BENCH_STEP_S = 3
"""How long a step of `--cliff` is measured unless it is said: several hundred operations of a millisecond."""

BENCH_STEPS = 30
"""Steps of a climb at most: from 1 a second to all that may be asked for is 20, and then some to come closer."""

BENCH_WATCH_MS = 250
"""Between two looks at descriptors and health in a step: seldom enough not to be a load itself."""
