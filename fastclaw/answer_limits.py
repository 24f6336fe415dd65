"""The bounds of what is said: answers, and what is kept for them. Kept to as those of limits.py are."""

from fastclaw.limits import KIB, MIB

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

DISK_RESERVE_BYTES = 1 * MIB
"""Room that is given up to remove a container on a full disk: Podman's lists of layers and containers, and a write to
its database, take some 100 KB (measured, 4.3.1)."""

DISK_LOW_BYTES = 16 * MIB
"""Free room below which `health` says that a disk is full: what a container takes until it runs, some times over."""

PODMAN_RUNROOT_BYTES = 50
"""Of the path of its runroot, Podman takes so much: conmon's sockets are below it (libpod/options.go, 4.3.1 to 5)."""

HOLD_TRIES = 8
"""Directories that are made before one can be locked: whoever takes one for abandoned does so within microseconds."""

SHOWN_COMMAND_BYTES = 4 * KIB
"""Of a command line, what `list` shows and a record keeps: 10 000 records of long ones take 40 MB, not gigabytes."""

WORD_BYTES = 50
"""What each word of it costs besides its text: what Python keeps around a string (sys.getsizeof(""))."""
