"""Bounds of environments and of their files, each with its reason; those of their processes are in `limits`."""

from fastclaw.limits import KIB, MAX_RUN_OUTPUT_BYTES, MIB

# --- Environments ----------------------------------------------------------------------------------

MAX_ENVIRONMENTS = 4_096
"""Environments of one connection, ready ones of pools among them: as many as processes, since each has at least one."""

MAX_POOL_KINDS = 64
"""Kinds of environment that are kept ready: each is looked at whenever there is room for one more."""

PROCESS_PREFIX_BYTES = 4
"""What tells the processes of one environment from those of all others, also of other connections."""

RESET_KILL_MS = 5_000
"""A reset's wait for the end of every process: a kernel ends thousands in some 100 ms; what takes longer than this ends
with the container, which follows."""

MEMORY_PER_ENVIRONMENT = 4 * MIB
"""Of one in which nothing runs, everything counted: 2 to 3 MB (make bench), and what its first commands need."""

PIDS_PER_ENVIRONMENT = 20
"""A spawner, its reapers and pumps, and a monitor of the engine's."""

POOL_MEMORY_PERCENT = 10
"""Of the host's memory that ready environments leave alone: they wait for work, which needs it."""

POOL_PIDS_PERCENT = 25
"""Of the host's processes that ready environments leave alone, likewise."""

POOL_STARTING = 4
"""Environments that are made ready at a time while no caller waits for one; else one at a time."""

POOL_LOOK_MS = 1_000
"""Between two looks at a host that bears no more."""

FILES_PER_ENVIRONMENT = 12
"""Descriptors that an environment holds here while nothing runs in it: spawner, init, memory, listeners, locks."""

# --- Control groups of commands' own ---------------------------------------------------------------------

CPU_PERIOD_US = 100_000
"""In which a container, or a command, may use its share of processors: the kernel's own default."""

SPARE_GROUPS = 8
"""Made at a time, 0.1 ms each: a burst of starts waits for few of them."""

MAX_SPARE_GROUPS = 64
"""That wait for the next command: as many as start at a time, and some KB of the kernel's memory each."""

GROUP_RESIDUE_BYTES = 1 * MIB
"""Left in a memory group that may serve another command: 256 KB for each processor are what the kernel keeps ahead."""

GROUP_LOOK_MS = 1
"""The first pause before a group that the kernel was not through with is removed: it sends no event."""

GROUP_LOOK_MAX_MS = 1_000
"""The longest of them: what stays busy goes with the environment."""

LEAF_PASSES = 64
"""Looks at an environment's own group, from which all must go: each takes what was forked during the one before."""

# --- Files -------------------------------------------------------------------------------------------------

FILE_INLINE_BYTES = 1 * MIB
"""Of a file's content in an answer, unless the request asks for another limit: what people edit is a few KB."""

MAX_FILE_INLINE_BYTES = MAX_RUN_OUTPUT_BYTES
"""The most that a request may ask for: base64 of it fits a line. Larger ones come as a stream."""

FILE_OUTCOME_BYTES = 256 * KIB
"""The one line that a file helper says in the end, with the path of what it is about: 512 names of 255 bytes."""

DIR_ENTRIES = 1_000
"""Entries of one page of a directory, unless the request asks for another number: 200 KB of JSON."""

MAX_DIR_ENTRIES = 4_096
"""The most of them: 256 bytes each in the helper, and some 2 MB of JSON with the longest names."""

CLIENT_FILE_BYTES = 256 * KIB
"""One read of a file's stream: as much as a Unix socket holds by default (net.core.wmem_default). More at once is sent
and read by a thread: the loop would be woken up for each such piece."""
