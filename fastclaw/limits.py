"""Every bound of the product, by name, with its unit and the reason for its value.

What is here is either a default of `options` (so a user may change it) or a hard bound that protects
the process. Nothing elsewhere in the package carries a bare number for a size, a count or a wait.
"""

KIB = 1024
MIB = 1024 * KIB

# --- The wire -------------------------------------------------------------------------------------

MAX_LINE_BYTES = 32 * MIB
"""One JSON-RPC line. The sibling harnesses' codec allows the same (anyclaw-sdk-service, jsonrpc.rs)."""

MAX_BATCH_ITEMS = 10_000
"""Requests in one batch: as many as one full admission queue. 32 MiB of `[1,1,…]` would else cost GiBs of answers."""

MAX_IN_FLIGHT = 32_768
"""Requests being worked on at once: a queued exec and a `wait` for each of 10 000, and room for control."""

READ_CHUNK_BYTES = 64 * KIB
"""One read of stdin: all that a default pipe holds (pipe(7)), and below malloc's threshold for a mapping of its own."""

OUTPUT_HIGH_WATER_BYTES = 4 * MIB
"""Unwritten answers at which reading requests stops: the reader is slower than we are."""

OUTPUT_LOW_WATER_BYTES = 1 * MIB
"""Unwritten answers at which reading goes on: low enough not to flap, high enough not to idle."""

IDLE_WORKERS = 256
"""Request workers kept between bursts. A parked coroutine costs about 1 KB; a new task about 3 µs."""

WORKER_STREAK = 256
"""Requests handled without a pause before other work gets the loop: well under a millisecond of quick ones."""

FINAL_FLUSH_MS = 2_000
"""How long the last answers may take to leave when the supervisor does not read them."""

# --- Defaults of `options` -------------------------------------------------------------------------

MAX_PROCESSES = 4_096
"""Live processes: about 8 descriptors each stay within the 20 000 to 65 536 that hosts commonly allow."""

MAX_STARTING_REST = 4
"""Starts in flight per container on the REST lane: every one pins a thread of the engine on the container's
lock (Podman's SHM locks are taken with LockOSThread), and only one of them proceeds."""

MAX_STARTING_LOCAL = 64
"""Starts in flight where a start costs about a millisecond: enough to hide the round trip."""

QUEUE_LIMIT = 10_000
"""exec calls waiting for a start: beyond it a caller is better served by `overloaded` than by the wait."""

QUEUE_TIMEOUT_MS = 30_000
"""How long an exec call may wait for its turn."""

KILL_GRACE_MS = 1_000
"""TERM to KILL."""

SHUTDOWN_TIMEOUT_MS = 10_000
"""The supervisor's own patience with an extension is 30 s (notes on anyclaw v0.11.0); this stays well under it."""

KEEP_EXITED_MS = 300_000
"""How long an exit record can be asked for; Docker and Podman keep exec sessions for the same five minutes."""

KEEP_EXITED = 10_000
"""Exit records kept, about 1 KB each."""

LINGER_MS = 30_000
"""How long the sockets of an ended process wait for their reader."""

MAX_LINGERING = 1_000
"""Ended processes that wait for a reader: six descriptors each."""

CONTAINERS = 4
"""Shards of the REST lane. One container starts one exec at a time; past four the engine's database is the limit
(measured: 42/s with one, 49/s with four, 2 cores, crun)."""

PIDS_LIMIT = 4_096
"""Processes in one container; Podman's own default is 2 048 for all execs together."""

SHM_BYTES = 64 * MIB
"""/dev/shm of a container: Podman's default."""

ENGINE_TIMEOUT_MS = 30_000
"""One call to the engine. An engine whose OCI runtime is missing hangs for ever; a loaded one answers within seconds."""

START_TIMEOUT_MS = 120_000
"""Bringing the whole environment up, an image pull included."""

# --- Hard bounds -----------------------------------------------------------------------------------

MAX_ARG_BYTES = 128 * KIB
"""One argument or `K=V` string: the kernel's MAX_ARG_STRLEN is 32 pages (include/uapi/linux/binfmts.h)."""

MAX_KEY_BYTES = 256
"""An idempotency key: room for a UUID with a path around it."""

MAX_NAMESPACE_BYTES = 64
"""A namespace ends up in container names and directories."""

SOCKET_PATH_BYTES = 107
"""sun_path holds 108 with its NUL (unix(7))."""

LISTEN_BACKLOG = 8
"""Connections waiting at a process's socket: one is served, the rest are turned away at once."""

MAX_DRAINING_CLIENTS = 16
"""Clients that left while their last input still waits for the process. Past it, no new one is accepted until one is through."""

RELAY_CHUNK_BYTES = 1 * MIB
"""One splice: the largest pipe an unprivileged process may ask for (fs.pipe-max-size)."""

RELAY_BURST = 16
"""Splices of one relay before it gives the loop back: fairness among thousands of streams."""

PIPE_BYTES = 64 * KIB
"""A fresh pipe (pipe(7)): memory is only taken as it fills."""

BULK_PIPE_BYTES = 1 * MIB
"""A pipe that has proved busy grows to fs.pipe-max-size's default: fewer wake-ups per byte."""

ENGINE_IDLE_CONNECTIONS = 16
"""Keep-alive connections kept towards the engine: 4 shards of 4 starts."""

MAX_HTTP_HEADER_BYTES = 64 * KIB
"""Header block of an engine's answer; h11's own default for an incomplete event is 16 KiB, Go servers send up to 1 MiB."""

MAX_HTTP_BODY_BYTES = 16 * MIB
"""An answer of the engine: the inspect of a command line of 2 MiB with escapes stays well below."""

OCI_ERROR_BYTES = 16 * KIB
"""How much of a stream is held back while it may be the engine's own error message instead of the command's output."""

TREE_SCAN_MS = 20
"""Pause between two looks at a process tree that is being killed: processes die in well under a millisecond."""

# --- The managed engine ----------------------------------------------------------------------------

ENGINE_READY_MS = 20_000
"""A new service until its first answered ping: 0.2 s measured on an idle machine, seconds on a first start
with a cold disk."""

ENGINE_STOP_MS = 5_000
"""TERM to KILL of the service: Podman gives open connections one second (pkg/api/server/server.go, 4.3.1)."""

ENGINE_READY_POLL_MS = 10
"""Pause between two pings of a service that is coming up: far below its start-up time."""

EXIT_COMMAND_DELAY_S = 10
"""How long conmon and the exec session outlive an exec. Podman's 300 leaves two processes per exec for five
minutes; 0 removes the session before its exit code can be asked for (notes on Podman, PR 20405)."""

ENGINE_LOG_BYTES = 16 * KIB
"""Tail of the service's stderr that is kept for error messages."""

ENGINE_LOCK_MS = 5_000
"""Waiting for another fastclaw that prepares the same state directory: it holds the lock for a few file operations."""

LIFECYCLE_THREADS = 8
"""Threads for podman-py: four shards created at once, and room for calls that hang until their deadline."""

LIFECYCLE_TIMEOUT_SLACK_MS = 1_000
"""By how much the event loop waits longer than the HTTP client: the client's own, more exact error goes first."""

PULL_TIMEOUT_MS = 110_000
"""An image pull, within `START_TIMEOUT_MS`."""

MAX_BUSYBOX_BYTES = 16 * MIB
"""A static busybox is 2 MB; anything larger is something else."""

BUSYBOX_LIST_MS = 5_000
"""`busybox --list` answers within a millisecond; a machine that swaps may take longer."""

MIN_NOFILE = 1_024
"""A container with fewer open files cannot do useful work; also what a host without a limit of its own reports."""

MAX_NOFILE = 1_048_576
"""fs.nr_open's default: no process may have more, and an RLIM_INFINITY must become a number."""

MAX_NPROC = 4_194_304
"""The largest pid_max of a 64-bit kernel (proc(5)): stands for "unlimited" where a number is needed."""
