"""The bounds of an engine of our own, and of the disk that it is on. Kept to as those of limits.py are."""

from fastclaw.limits import KIB, MIB

ENGINE_READY_MS = 20_000
"""A new service until its first answered ping: 0.2 s measured on an idle machine, seconds on a first start
with a cold disk."""

ENGINE_STOP_MS = 5_000
"""TERM to KILL of the service: Podman gives open connections one second (pkg/api/server/server.go, 4.3.1)."""

ENGINE_BACK_MS = 10_000
"""For which a removal waits for the successor of an engine of our own that has ended: 0.4 s measured on an idle
machine, and some tries more."""

ENGINE_GROUP_LOOKS = 3
"""At what is left of a service's process group: what was ended may just have started another one."""

JANITOR_DRAIN_MS = 1_500
"""TERM to KILL of a service whose owner was killed: Podman gives open connections one second, and after two seconds
nothing of a killed owner shall be left."""

JANITOR_CALL_MS = 10_000
"""One Podman command of a janitor: 0.1 s measured on an idle machine; one that hangs must not outlive us for ever."""

JANITOR_TRIES = 3
"""How often a janitor removes what stays: a successor that starts at once removes the same containers."""

ENGINE_READY_POLL_MS = 10
"""Pause between two pings of a service that is coming up: far below its start-up time."""

STUMBLE_WAITS_MS = (10, 20, 40, 80)
"""Pauses before a call is made again that Podman stumbled over: while two builds ran in the same storage, one look in
fifty at an image failed, and two in a row at the most (measured, Podman 4.3.1)."""

EXIT_COMMAND_DELAY_S = 60
"""How long conmon and the session outlive an exec where conmon has no stand-in (engine/service/plan.py). Podman's 300
keeps two processes per exec for five minutes; with 2 and 10, four containers at full rate lost sessions before the exit
code was asked for (measured, Podman 4.3.1, 2 CPUs)."""

ENGINE_LOG_BYTES = 16 * KIB
"""Tail of the service's stderr that is kept for error messages: some hundred lines, and the last say why it ended."""

ENGINE_LOCK_MS = 5_000
"""Waiting for another fastclaw that prepares the same state directory: it holds the lock for a few file operations."""

PACE_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Calls in flight that change something, from which a pace chooses; it begins with the second. On 2 cores Podman 4.3.1
starts 14 containers in a second one at a time, 25 with two, 27 with four and no more with 32 (measured)."""

PACE_WINDOW_CALLS = 8
"""Calls that are counted before a pace judges, or twice as many as are in flight: fewer say little."""

PACE_WINDOW_MS = 100
"""Time for which a pace counts at the least: calls that end all at once would give any rate."""

PACE_REST_WINDOWS = 4
"""Windows between two tries of a pace: a try that fails costs one of five."""

PACE_GAIN_PERCENT = 8
"""What one more step up has to gain: less is noise."""

PACE_LOSS_PERCENT = 3
"""What one step down may lose: fewer calls at the same rate are each done sooner."""

PACE_NEWEST_PERCENT = 20
"""The share of the newest call in what its kind is taken to cost."""

ENGINE_READS = 4
"""Short calls that change nothing, at a time: they must not wait behind the others, which take ten times as long."""

ENGINE_FETCHES = 8
"""Images that are pulled or made at a time: a registry that hangs must not hold up the others."""

ENGINE_THREAD_IDLE_MS = 5_000
"""After it a thread that nobody needs ends, with its connection; a new one costs half a millisecond."""

KNOWN_IMAGES = 128
"""Images of which is kept what the engine said of them, and the two files that name their users: some KB each."""

LOST_CONTAINERS = 1_024
"""Containers of unknown fate, whose create call broke off, that are looked for: all that could be under way."""

LOST_LOOKS = 5
"""Looks for such a container at an engine that answers: it may still be at the create call it was sent."""

LOST_LOOK_S = 1
"""Pause before the second look for it, doubled each time."""

LOST_LOOK_MOST_S = 30
"""Most of that pause, for as long as no engine answers."""

LOST_LAST_LOOK_MS = 2_000
"""What all of them get when fastclaw ends: some 20 ms each."""

ENGINE_THREADS_LEAVE_MS = 1_000
"""For calls that nobody awaits any more when fastclaw ends: they end with an engine of our own, at the latest."""

LIFECYCLE_TIMEOUT_SLACK_MS = 1_000
"""By how much the event loop waits longer than the HTTP client: the client's own, more exact error goes first."""

PULL_TIMEOUT_MS = 110_000
"""An image pull, within `START_TIMEOUT_MS`."""

IMAGE_TIMEOUT_MS = 2 * 3_600_000
"""A pull, a build or a load that was asked for by itself: images of 50 GB over a line of 100 Mbit/s, and builds that
compile for an hour; one that hangs must not hold its thread for ever."""

ENGINE_BUILDS = 4
"""Builds and loads at a time: each takes a core and a disk, and pulls must not wait behind those of an hour."""

BUILD_END_MS = 10_000
"""For which the cancel of a build waits until the engine is through with it: 0.2 s measured on an idle machine."""

BUILD_END_MOST_MS = 300_000
"""For which steps of it are ended all the same: who unpacks 50 GB hears of the cancel when that is done. Then the
connection is closed, whatever goes on."""

BUILD_CALM_MS = 2_000
"""Without a sign of a build after its cancel, until it is taken to be over: from a step to the next it is 0.2 s."""

BUILD_LOOK_MS = 50
"""Pause between two looks at what an engine still has of a build: it sends no event."""

BUILD_OUTPUT_CHARS = 4 * KIB
"""Tail of a build's output that its error has: the end of a traceback or of a compiler's complaint."""

IMAGE_CHUNK_BYTES = 256 * KIB
"""Read of a file that is sent to the engine: a chunk costs a write and a read on its socket, and holds so much."""

TELL_FIRST_S = 1
"""After it the log says that an image is still being made or pulled: who waits longer takes it for hanging."""

TELL_AGAIN_S = 10
"""Until the log says it again: a pull may take minutes."""

MAX_IMAGE_BYTES = 128 * MIB
"""All files of the default image, which is made in memory: a static busybox has 2 MB, Debian's shell and tools 20."""

CONTAINER_GONE_MS = 5_000
"""How long a container may refuse to be removed because its own end is removing it: 0.1 s when idle."""

CONTAINER_STOP_S = 1
"""Podman's TERM to KILL of a container's init, in seconds: by then its processes have been ended one by one."""

PROGRAM_ANSWER_MS = 5_000
"""A program asked for its version or its list of applets: milliseconds; a machine that swaps may take longer."""

MAX_NOFILE = 1_048_576
"""fs.nr_open's default: no process may have more, and an RLIM_INFINITY must become a number."""

DISK_RESERVE_BYTES = 1 * MIB
"""Room that is given up to remove a container on a full disk: Podman's lists of layers and containers, and a write to
its database, take some 100 KB (measured, 4.3.1)."""

DISK_LOW_BYTES = 16 * MIB
"""Free room below which `health` says that a disk is full: what a container takes until it runs, some times over."""

PODMAN_RUNROOT_BYTES = 50
"""Of the path of its runroot, Podman takes so much: conmon's sockets are below it (libpod/options.go, 4.3.1 to 5)."""

CLONER_FRAME_BYTES = 128 * KIB
"""One order to the cloner, or one answer: a container's configuration is 16 KiB, half of it its seccomp profile."""

CLONER_READY_MS = 20_000
"""A new cloner until it can be told something: 0.1 s measured on an idle machine."""

CLONER_EXIT_MS = 10_000
"""What a cloner may take to remove all that is left when fastclaw ends: 5 ms for each clone."""

CLONER_THREADS = 4
"""Of the cloner, for the ends of clones: they wait for processes and control groups."""

CLONER_COPIES = 2
"""Threads of the cloner that copy layers by links: a large image takes a second, and removals do not wait for it."""

CLONER_TRASH = 256
"""Directories that wait to be removed; beyond it, who leaves one waits for its removal, so that the disk is not filled
faster than it is emptied."""

CLONER_NAMESPACES = 64
"""User namespaces that the cloner keeps for the next clone with the same ids: one descriptor each, 1 ms to make."""

CLONE_START_MS = 20_000
"""One start of a clone: 10 ms measured on an idle machine."""

CLONE_LEARN_MS = 20_000
"""How long a container waits for the first of its kind: 0.1 s for its start, a second for a large image."""

CLONE_END_MS = 5_000
"""From SIGKILL to the end of a clone's processes and of its control groups: milliseconds."""

CLONES_LEAVE_MS = 300
"""How long clones have to end with their spawners once fastclaw has died: milliseconds each, many at the same time."""

CLONE_LOOK_MS = 1
"""Pause between two looks at what sends no event: control groups of version 1, children that end."""

CLONE_KINDS = 64
"""Kinds of containers that can be cloned at a time; the one that was not used for longest makes room."""

CLONE_SEED_ENTRIES = 64
"""What the engine may have made in a new container's root, mount points above all: ten measured."""

CLONE_FILE_BYTES = 64 * KIB
"""A file that the engine makes for each container: hosts(5) and the like have some hundred bytes."""

DOCKER_EXEC_LOOK_MS = 10
"""Pause between two looks whether an exec of Docker's has come about, which takes some 100 ms."""

DOCKER_EXIT_LOOK_MS = 100
"""Pause between two looks whether Docker knows of an exit while something holds the streams: 20.10 takes 4 s for it."""

MAX_RUNTIME_FLAGS = 64
"""Words with which an OCI runtime is called: gVisor's has some hundred flags, of which few are of use at a time."""
