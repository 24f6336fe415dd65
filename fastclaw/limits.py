"""Every bound of the product, by name, with its unit and the reason for its value.

What is here is either a default of `options` (so a user may change it) or a hard bound that protects
the process. Nothing elsewhere in the package carries a bare number for a size, a count or a wait.
"""

KIB = 1024
"""Powers of two, as the kernel's own sizes are."""

MIB = 1024 * KIB
"""Powers of two, as the kernel's own sizes are."""

# --- The wire -------------------------------------------------------------------------------------

MAX_LINE_BYTES = 32 * MIB
"""One JSON-RPC line. The sibling harnesses' codec allows the same (anyclaw-sdk-service, jsonrpc.rs)."""

MAX_BATCH_ITEMS = 10_000
"""Requests in one batch: as many as one full admission queue. 32 MiB of `[1,1,…]` would else cost GiBs of answers."""

MAX_IN_FLIGHT = 32_768
"""Requests being worked on at once: a queued exec and a `wait` for each of 10 000, and room for control."""

MAX_CONTROL_IN_FLIGHT = 65_536
"""The same for kill, signal, list, health and shutdown: as much again, so that a full runtime can be controlled."""

READ_CHUNK_BYTES = 64 * KIB
"""One read of stdin: all that a default pipe holds (pipe(7)), and below malloc's threshold for a mapping of its own."""

OUTPUT_HIGH_WATER_BYTES = 4 * MIB
"""Unwritten answers at which reading requests stops: the reader is slower than we are."""

OUTPUT_LOW_WATER_BYTES = 1 * MIB
"""Unwritten answers at which reading goes on: low enough not to flap, high enough not to idle."""

CALLS_PER_TURN = 64
"""Requests begun before other work gets the loop: some half a millisecond of quick ones (8 µs each)."""

CALLS_SHARE = 2
"""Of what waits, half at a time where that is more: one read brings hundreds of requests, which must not pile up."""

URGENT_STREAK = 16
"""Urgent requests that overtake others before one of those has its turn: a supervisor looks at and ends a few at a
time, and one that asks without a pause must not keep everybody else from starting."""

GC_THRESHOLDS = (20_000, 50, 100)
"""New objects, then collections of the younger generation, before the collector looks: reference counts free all that
the hot path makes, so looking is for what errors and library code leave in cycles."""

FINAL_FLUSH_MS = 2_000
"""How long the last answers may take to leave when the supervisor does not read them: with `SHUTDOWN_TIMEOUT_MS` before
it, well under the supervisor's 30 s."""

# --- Answers, and what is kept for them -----------------------------------------------------------------

MOST_PER_CHARACTER = 6
"""Bytes that JSON writes for one character: `\\u0000` for NUL; nothing takes more."""

MAX_ID_CHARS = 256
"""An id that is a string: it comes back with its answer, and 10 000 answers to a batch are one line. A UUID has 36."""

MAX_ERROR_BYTES = 64 * KIB
"""One error as a line: the words of an engine that failed, up to 16 KiB of them, and what JSON makes of those."""

MIN_ERROR_BYTES = 256
"""What is around the texts of an error that was cut: names, code and words, some 180 bytes."""

MAX_HEALTH_BYTES = 256 * KIB
"""One answer to `health`: 2 KB, and with 64 templates or a long list of rules some tens of KB."""

MAX_PATH_CHARS = 4_096
"""A path among the options, one of which comes back as `workspace_root`: the kernel's PATH_MAX (limits.h)."""

MAX_IMAGE_NAME_CHARS = 512
"""A reference of an image: a name has 255 at most, a tag 128, a digest 71 (OCI distribution specification)."""

PROGRESS_MS = 100
"""From one notice of how a request comes on to the next: as fast as a person reads a bar, and 1 % of a core."""

PROGRESS_TEXT_CHARS = 16 * KIB
"""Lines in one notice, some two hundred: ten times as much in a second, and more is counted instead."""

PROGRESS_LINE_CHARS = 1 * KIB
"""The beginning of a line that is told: what is longer is a bar that draws itself, or no text."""

HOLD_TRIES = 64
"""Directories that are made before one can be locked: another process may take a new one for abandoned in between.
Where four did nothing but make and sweep, eight in a row were lost once."""

SHOWN_COMMAND_BYTES = 4 * KIB
"""Of a command line, what `list` shows and a record keeps: 10 000 records of long ones take 40 MB, not gigabytes."""

WORD_BYTES = 50
"""What each word of it costs besides its text: what Python keeps around a string (sys.getsizeof(""))."""

# --- Defaults of `options` -------------------------------------------------------------------------

MAX_PROCESSES = 4_096
"""Live processes: about 8 descriptors each stay within the 20 000 to 65 536 that hosts commonly allow."""

MAX_STARTING_REST = 4
"""Starts in flight per container on the REST lane: every one pins a thread of the engine on the container's
lock (Podman's SHM locks are taken with LockOSThread), and only one of them proceeds."""

MAX_STARTING_SPAWN = 64
"""Starts in flight where a start costs about a millisecond: enough to hide the round trip."""

QUEUE_LIMIT = 10_000
"""exec calls waiting for a start: beyond it a caller is better served by `overloaded` than by the wait."""

QUEUE_TIMEOUT_MS = 30_000
"""How long an exec call may wait for its turn: as long as the sibling supervisors wait for an answer."""

KILL_GRACE_MS = 1_000
"""TERM to KILL: Docker's and Podman's 10 s would take up all of `SHUTDOWN_TIMEOUT_MS`."""

SHUTDOWN_TIMEOUT_MS = 10_000
"""The supervisor waits 30 s for an extension (notes on anyclaw v0.11.0); this stays well under it."""

KEEP_EXITED_MS = 300_000
"""How long an exit record can be asked for; Docker and Podman keep exec sessions for the same five minutes."""

KEEP_EXITED = 10_000
"""Exit records kept, about 1 KB each."""

LINGER_MS = 30_000
"""How long the sockets of an ended process wait for their reader: as long as a caller waits for the answer to exec."""

MAX_LINGERING = 1_000
"""Ended processes that wait for a reader: six descriptors each."""

CONTAINERS = 1
"""Containers of the REST lane: an environment is one file system. More start more execs at a time, each in another one
(measured: 42/s with one, 49/s with four, past which the engine's database is the limit; 2 cores, crun)."""

IDS = 65_536
"""User and group ids of one environment: those that images and passwd(5) files use, nobody (65534) among them."""

MAX_ID_RANGES = 16_384
"""For a mistyped number to be found: a quarter of all ids that there are (2**32)."""

PIDS_LIMIT = 4_096
"""Processes in one container; Podman's own default is 2 048 for all execs together."""

SHM_BYTES = 64 * MIB
"""/dev/shm of a container: Podman's default."""

EXECS_PER_CONTAINER = 100
"""Execs that one of several containers serves before a fresh one takes over: Podman 4.3.1 lost a third of its speed by
some 500 sessions in one record, and a tenth by 200 (measured). A fresh one costs 50 ms and, while a worker lives in it,
3 MB."""

DRAIN_LOOK_MS = 1_000
"""How often a container that gets no more execs is looked at, until nothing runs in it."""

REVIVE_FIRST_MS = 100
"""Pause before a container that died is replaced: an engine that is going down gets to say so."""

REVIVE_LAST_MS = 30_000
"""Longest pause between attempts to replace a container: a dead engine costs two tries a minute, a live one is found
within half of one."""

REVIVE_PROVEN_MS = 10_000
"""A container that lived this long has not failed: the next replacement is quick again."""

ENGINE_TIMEOUT_MS = 30_000
"""One call to the engine. An engine whose OCI runtime is missing hangs for ever; a loaded one answers within
seconds."""

START_TIMEOUT_MS = 120_000
"""Bringing the whole environment up, an image pull included."""

# --- Hard bounds -----------------------------------------------------------------------------------

MAX_ARG_BYTES = 128 * KIB
"""One argument or `K=V` string: the kernel's MAX_ARG_STRLEN is 32 pages (include/uapi/linux/binfmts.h)."""

MAX_ARGS_BYTES = 6 * MIB
"""All arguments and variables: whatever RLIMIT_STACK says, the kernel takes no more (execve(2), 3/4 of _STK_LIM). An
engine would keep a longer one in its database before it fails, and be slow for all others meanwhile."""

MAX_KEY_BYTES = 256
"""An idempotency key: room for a UUID with a path around it."""

TTY_ROWS = 24
"""Of a terminal whose request names no size: what every terminal since the VT100 has."""

TTY_COLUMNS = 80
"""The same, for its columns: what programs lay their output out for."""

MAX_TTY_EXTENT = 65_535
"""Rows or columns of a terminal: struct winsize has 16 bits for each (ioctl_tty(2))."""

MAX_NAMESPACE_BYTES = 64
"""A namespace ends up in container names and directories: room for a UUID with a prefix, far below NAME_MAX."""

SOCKET_PATH_BYTES = 107
"""sun_path holds 108 with its NUL (unix(7))."""

LISTEN_BACKLOG = 8
"""Connections waiting at a process's socket: one is served, the rest are turned away at once."""

MAX_DRAINING_CLIENTS = 16
"""Clients that left while their last input still waits for the process. Past it, new ones wait in the backlog."""

ACCEPT_RETRY_MS = 100
"""Pause after an accept that found no free descriptor: the kernel has no event for one, and the backlog stays ready."""

RELAY_CHUNK_BYTES = 1 * MIB
"""One splice: the largest pipe an unprivileged process may ask for (fs.pipe-max-size)."""

COPY_CHUNK_BYTES = 64 * KIB
"""One read of the copying relay: all that a default pipe holds."""

RELAY_BURST = 16
"""Splices of one relay before it gives the loop back: fairness among thousands of streams."""

PIPE_BYTES = 64 * KIB
"""A fresh pipe (pipe(7)): memory is only taken as it fills."""

BULK_PIPE_BYTES = 1 * MIB
"""A pipe that has proved busy grows to fs.pipe-max-size's default: fewer wake-ups per byte."""

ENFORCE_DELAY_MS = 10
"""Exits within this time are counted together: bounds may be exceeded by what ends in it, some thirty processes. To
choose which sockets go costs as much for all of them as for one."""

DISPENSABLE_SCAN = 64
"""More lingering processes that are looked at than are to go, to find those without output: keeps the choice O(1)."""

ENGINE_IDLE_CONNECTIONS = 16
"""Keep-alive connections kept towards the engine: 4 containers of 4 starts."""

MAX_HTTP_HEADER_BYTES = 64 * KIB
"""Header block of an engine's answer; h11's own default for an incomplete event is 16 KiB, Go servers send up to 1
MiB."""

MAX_HTTP_BODY_BYTES = 16 * MIB
"""An answer of the engine: the inspect of a command line of 2 MiB with escapes stays well below."""

PROGRAM_ARCHIVE_BYTES = 64 * KIB
"""How much of the archive of a program that was refused is read: what names its interpreter or loader is in its first
pages."""

PROGRAM_DEPTH = 5
"""Interpreters of interpreters that the kernel follows (fs/exec.c, exec_binprm)."""

PROGRAM_HEADERS = 64
"""Program headers of an ELF file that are looked at: linkers write a dozen."""

PATH_BYTES = 4_096
"""PATH_MAX of Linux (include/uapi/linux/limits.h)."""

PROGRAM_LOOKS = 24
"""Files that the engine is asked about where a command was refused: a search path has some ten directories."""

PROGRAM_LOOK_MS = 2_000
"""How long that may take in all; a look takes the engine 2 ms."""

OCI_ERROR_BYTES = 16 * KIB
"""How much of a stream is held back while it may be the engine's own error message, not the command's output."""

OOM_VICTIM_MS = 5_000
"""How long after the out-of-memory killer was noticed a command's SIGKILL may be its: with gigabytes to give back, a
victim takes seconds to be gone, and a neighbour's end may have been what was noticed first."""

TREE_SCAN_MS = 20
"""Pause between two looks at a process tree that is being killed: processes die in well under a millisecond."""

# --- Descriptors -----------------------------------------------------------------------------------

POLLER_EVENTS = 256
"""Sockets dealt with in one turn of the loop: some milliseconds when all are busy."""

# --- The client ------------------------------------------------------------------------------------

CLIENT_CALL_MS = 30_000
"""An answer to a call that does not wait for anything slow: as long as the sibling supervisors wait."""

CLIENT_INITIALIZE_MS = START_TIMEOUT_MS + 10_000
"""The runtime's own deadline for its start goes first, so that the caller reads its reason."""

CLIENT_EXEC_MS = QUEUE_TIMEOUT_MS + 2 * ENGINE_TIMEOUT_MS
"""The runtime's own deadlines (waiting, then the engine, then taking a failed start back) go first."""

CLIENT_IMAGE_MS = 2 * 3_600_000 + 30_000
"""A pull, a build or a load: the runtime's own deadlines go first."""

CLIENT_SHUTDOWN_MS = SHUTDOWN_TIMEOUT_MS + FINAL_FLUSH_MS + 3_000
"""The runtime's own bound on shutdown, and room for a machine under load."""

CLIENT_EXIT_MS = 5_000
"""Each step of the escalation that ends a runtime: after its answer to shutdown, after EOF, after TERM."""

CLIENT_EXIT_NOTICE_MS = 1_000
"""From the end of a runtime's stdout to its exit code, or the other way round: both come within milliseconds
unless the runtime closed one on purpose or left a child behind that holds it."""

CLIENT_PENDING = MAX_IN_FLIGHT
"""Calls of one client under way: no more than a runtime works on at once. The next call waits for its turn."""

CLIENT_READ_BYTES = 64 * KIB
"""One read of a process's stream: what its pipe holds, and below malloc's threshold for a mapping of its own."""

CLIENT_CONNECT_MS = 5_000
"""Connecting to a process's socket that listens with a full backlog: a live runtime makes room within milliseconds."""

CLIENT_CONNECT_RETRY_MS = 5
"""Pause before the next try at a full backlog: the kernel has no event for room in it."""

# --- What one process takes from the host (processes/admission.py) ----------------------------------

FILES_PER_PROCESS = 8
"""Two listeners, two connections, three pipe ends, one pidfd: where this process moves the bytes."""

FILES_PER_PUMPED = 2
"""Two listeners, here; at the spawner's main, which has as many descriptors, two connections."""

RESERVED_FILES = 512
"""The runtime's own: loop, stdio, engine connections, libraries, log; and room for bursts of accepts."""

PIDS_PER_PROCESS = 3
"""The command, its reaper and its pump (on the REST lane its conmon and its stdin's helper). What the command itself
starts falls under the pids limit."""

RESERVED_PIDS = 1_024
"""The host's own processes and the engine's threads: some hundreds of each on a usual server."""

MEMORY_PER_PROCESS = 1 * MIB
"""A small static worker with its page tables and kernel structures; real agents take more."""

HTTP_READ_BYTES = 64 * KIB
"""One read of an engine's answer: all but the inspect of a huge command line come whole."""

# --- Processes of this host --------------------------------------------------------------------------------

TREE_DEADLINE_MS = 5_000
"""After the grace is over, how long a killed tree may take to be gone: a large core of memory takes a second to
free; what takes longer sits in an uninterruptible call and may take for ever."""

TREE_QUIET_SCANS = 2
"""Scans in a row that find nothing before a tree counts as gone: /proc is not read in one instant, so that a process
may be born behind the reader's back while its parent ends in front of it."""

TREE_CATCH_UPS = 32
"""Looks at those born during a scan before it counts as incomplete: each takes some 30 µs, a fork ten times that."""

TREE_DOUBTFUL_SCANS = 16
"""Incomplete scans that find nothing before they are taken for quiet all the same: a host on which births never
pause for 30 µs must not keep a kill from its answer."""

GRACE_LOOK_MS = 50
"""How often the end of a grace is read again while it runs: a second signal to fastclaw may have moved it."""

MEMORY_WRITER_BYTES = 64 * KIB
"""Output of an in-process program that waits for its pipe: as much again as the pipe holds."""

MEMORY_MAX_OUT_BYTES = 1024 * MIB
"""The most that the built-in program `out` writes, so that a typing error does not run for hours."""

# --- The spawner (what is also in spawner/c is compared by a test) ----------------------------------

SPAWN_FRAME_BYTES = 16 * KIB
"""One frame: a usual command with its environment takes 1 to 4 KB; a longer one comes as a file. Every reaper has one
such buffer, of which it touches only what it needs."""

SPAWN_INLINE_STRINGS = 2_046
"""Arguments and variables within a frame: a reaper has 16 KiB for pointers to them."""

SPAWN_STRINGS_BYTES = 8 * MIB
"""Arguments and variables in a file: more than `MAX_ARGS_BYTES`, so that the kernel's own answer is what counts."""

SPAWN_STRINGS = MIB
"""Their number: 8 MiB are a million strings of a few bytes."""

SPAWN_HELLO_BYTES = 64 * KIB
"""A spawner's greeting with its environment, which is the image's and the engine's: a few hundred bytes, usually."""

SPAWN_HELLO_MS = 10_000
"""From a spawner's start to its greeting: a millisecond, on a machine that swaps seconds."""

SPAWN_START_MS = 30_000
"""A start that is not through its execve by then is given up: as long as a caller waits for anything else."""

SPAWN_ANSWER_MS = 10_000
"""An order that main answers: microseconds; 256 reapers on a machine under load take a second."""

SPAWN_INLINE_BYTES = 8 * KIB
"""Of each stream of a run, what goes along with its end: what most commands say. More goes to a file in memory."""

PUMP_LOOK_MS = 1_000
"""How often a pump is looked at that still has clients when the process is gone: two looks tell one that sleeps. And
how often clients of ended processes are looked at where these are too many: two looks tell one that reads nothing."""

STALLED_LOOKS = 10
"""Looks in a row at which a client has taken nothing of what waits for it: then it reads nothing. What it takes is seen
by whole buffers of its socket, some 64 KiB; so whoever takes 14 KB a second is never mistaken for one."""

LOOK_ANSWER_MS = 50
"""For pumps to say what waits in their pipes: some 20 µs each, and a while for other tasks on a loaded machine. One
that sleeps says nothing, and counts as one with output."""

LIST_LOOKS = 1_024
"""Processes of an answer to `list` whose pumps are asked whether an output is blocked: each takes some 50 µs in all."""

HEALTH_LOOKS = 64
"""The same for `health`, which monitoring asks for every few seconds."""

HEALTH_LOOK_MS = 20
"""LOOK_ANSWER_MS for `health`, which is to answer within 50 ms whoever locks a pipe. One that says nothing is not
counted."""

SPAWN_SPARE_REAPERS = 8
"""Idle reapers below which more are made: a burst of starts finds one each while the next are on their way. A new
environment waits for the first of them: with 16, which are 32 kernel tasks, it took a third longer on `local`."""

SPAWN_GROWTH_SHARE = 8
"""With many processes, an eighth as many reapers again at once: 5 000 live are reached in some 40 steps."""

SPAWN_IDLE_REAPERS = 256
"""Idle reapers that are kept after a burst: each is a kernel task of some 30 KB."""

SPAWN_EVENT_BURST = 64
"""Events read before the loop goes on: some 100 µs."""

OUTBOX_FRAMES = 4_096
"""Frames that wait for room in a socket: more than starts are ever in flight, and an order for each live process."""

SPAWN_FILE_BYTES = 1 * MIB
"""/etc/passwd or /etc/group of an image: a few KB; a directory of ten thousand users has 1 MB."""

USERDB_STEP = 256
"""Lines of them before the loop goes on: a quarter of a millisecond. Root inside may write a whole MiB."""

KNOWN_USERS = 64
"""Users that are remembered while both files stay as they are: an environment has a few, a harness ten."""

SPAWN_GROUPS = 256
"""Supplementary groups of one process: the kernel takes 65 536, and nobody has more than a few dozen."""

SPAWN_LISTEN_BACKLOG = 1_024
"""Connections waiting at a listener inside: what a burst of agents opens at once."""

SPAWN_EXIT_MS = 5_000
"""A spawner whose socket was closed ends all it keeps first: killed processes are gone within milliseconds."""

MAX_TEMPLATES = 64
"""Templates of one environment: each is a process of some 30 MB with what it has imported."""

TEMPLATE_START_PERCENT = 80
"""Of `start_timeout_ms`, for a template to be ready: it is named before all of the time is over."""

TEMPLATE_REQUEST_BYTES = 16 * MIB
"""A request in a file: `MAX_ARGS_BYTES`, and as much again for what JSON escapes."""

TEMPLATE_TAIL_BYTES = 2 * KIB
"""Tail of a template's stderr that is kept for its errors: the end of a traceback."""

TEMPLATE_LAST_WORDS_MS = 200
"""From a template's end to that of its stderr, which its pump passes on: microseconds, if nothing else holds it."""

TEMPLATE_READ_BYTES = 4 * KIB
"""One read of a template's output, and the most of it that one line of the log has: nobody waits for it."""

REAPER_UID = 64_535
"""Who the reapers are: a number that no distribution gives out, below 65 536 so that user namespaces have it."""

# --- The conformance checker -----------------------------------------------------------------------

CHECK_ANSWER_MS = 30_000
"""An answer that a check waits for, a loaded machine and a slow engine included."""

CHECK_MS = 150_000
"""One whole check, the start of an environment included."""

CHECK_SOON_MS = 5_000
"""What the contract calls "at once": an event, not a timer; the rest is room for a loaded machine."""

CHECK_JOBS = 32
"""Promises checked at a time: more would only wait for each other, and each has a runtime of its own."""

CHECK_POLL_MS = 20
"""Pause between two looks at what sends no event: a path, /proc."""

CHECK_EXCHANGE_ENTRIES = 40
"""Messages shown with a broken promise: the last ones tell what happened."""

CHECK_ENTRY_CHARS = 300
"""Of each message shown: a 33 MiB line needs no reading."""

ATTACH_READ_BYTES = 64 * KIB
"""One read of an exec's stream, so also what a process with a full pipe costs in memory. bench/relay_frames.py: reads
of 256 KiB are 0 to 40 % faster in bulk, and four times that memory."""

ATTACH_GATHER_SLICES = 64
"""Payloads written with one writev; past it they are tiny, and joining them is cheaper (and IOV_MAX is 1 024)."""

EXECVE_POLL_MS = 1
"""Pause between two looks whether a child of the OCI runtime has become the command: execve tells nobody."""

EXECVE_PROOF_MS = 250
"""How long that may take; a command that hides its environment counts as started then. Measured: below 2 ms."""

ABANDONED_START_MS = 2_000
"""How long a cancelled start waits for the engine to finish it, so that what it started can be ended."""

ABANDONED_KILL_MS = 2_000
"""How long the processes of a failed start may take to die: KILL needs milliseconds, a loaded machine more."""

GONE_LOOKS_MS = (1, 20, 80)
"""Pauses before each question whether the container is gone: after a SIGKILL of nobody we know, the engine may lag."""

EXIT_POLL_MS = (5, 10, 20, 40, 80, 160, 320, 640, 1_280, 2_560)
"""Pauses between inspects after the stream has ended while the engine still says running: it saves the exit before it
closes the stream, so the first is almost never needed; conmon gets 5 s to write its exit file."""

EXIT_SETTLE_MS = 500
"""After a SIGKILL that was not ours: how long the end of the stream is waited for before the container is looked at."""

# --- What a full runtime wants of the host (cli/diagnosis.py) ---------------------------------

PAGE_BYTES = 4 * KIB
"""A page on x86_64 and on most aarch64 systems: what is pure cannot ask the system itself."""

WANTED_KEYS = 1_000
"""Session keyrings: one per container and per exec that is being set up; the kernel's default for users is 200."""

WANTED_USER_NAMESPACES = 65_536
"""`user.max_user_namespaces` that doctor advises where there are none: an engine takes one for each container, and
kernels have this order of them by default."""

WANTED_INOTIFY = 128
"""inotify instances: the kernel's default; the engine takes one per exec whose exit it waits for, then polls
instead."""

# --- Runs and what ends with them -----------------------------------------------------------------------

RUN_OUTPUT_LIMIT_BYTES = 1 * MIB
"""Of each stream of a run, unless it asks for another: what one command says is a few KB, a build's log 100 KB."""

MAX_RUN_OUTPUT_BYTES = 16 * MIB
"""The most that a run may ask for, of each stream: both of them fill a line of `MAX_LINE_BYTES`."""

RUN_OUTPUT_BYTES = 1024 * MIB
"""What all runs of an environment hold at a time: 1 000 with a full stream each."""

DRAIN_MS = 200
"""How long after the exit a stream is waited for that something else holds open: what the command wrote itself is
there within a millisecond, on a loaded machine within some tens."""

ENGINE_DRAIN_MS = 200
"""The least of it on the REST lane: the exit is known before conmon and the engine have passed the last output on, and
nothing tells the two apart from somebody who holds the stream."""

CLIENT_DRAIN_BYTES = 4 * MIB
"""Output that is still read after the exit and the drain: more than a pipe and two sockets hold, so that what a command
wrote before its end reaches a reader that was slow, and what a background process writes does not go on for ever."""

RUN_ANSWER_BYTES = 4 * KIB
"""What is around the outputs of a run in its answer: names and numbers, some 500 bytes, and as much again."""

RUN_ANSWER_SLACK_BYTES = 256
"""By how much an answer that was cut may grow at other places: a gap's offset and the digits of what was dropped."""

YIELD_MS = 3_000
"""How long a shutdown waits for exec and run calls to be taken back: their grace and a moment; then it goes on, for
what it does next ends them too."""

# --- Helpers, and the stdin that one of them passes on -----------------------------------------------------

CHILD_KILLED_MS = 5_000
"""From SIGKILL to the end of a helper process: one with thousands of descriptors takes some 50 ms; what takes longer
sleeps where no signal is heard, and may do so for ever."""

STDIN_OPEN_MS = 1_000
"""Until a helper has opened the pipe: a fork and some looks at /proc, 2 ms; 50 ms with the server's own start. A pipe
that is locked takes for ever, and then stdin goes through the engine, which costs nobody but this command."""

STDIN_END_MS = 1_000
"""How long a helper may go on after the last writer has gone and the process has been given back: what it still has
reaches whoever reads within microseconds, and nobody else can be waited for."""

STDIN_KILLED_MS = 1_000
"""How long the server waits for helpers that it has killed: microseconds; one in a locked pipe may take for ever, and
ends by itself as soon as that is let go."""

STDIN_SERVER_PAUSE_MS = 1_000
"""Between two starts of a server, so that one which dies at once costs every second one start and not each exec."""

STDIN_SERVER_EXIT_MS = STDIN_KILLED_MS + 4_000
"""A server whose socket was closed kills its helpers and ends: thousands of them take some 100 ms."""

# --- What a template may say (spawner/frames.py) ------------------------------------------------------

MAX_ERRNO = 4_095
"""The largest error number that the kernel's calls can return (include/linux/err.h)."""

TEMPLATE_STEP_CHARS = 64
"""The name of what did not work: a word or two."""
