"""The commands that checks run, by what they do, and shell scripts that leave something running.

Owns argv templates and scripts. Does not know which check runs what.
"""

from collections.abc import Callable

from msgspec import Struct

from fastclaw import limits


class Vocabulary(Struct, frozen=True, kw_only=True):
    """Commands of one kind of environment.

    Parameters:
        name: for the report.
        true: ends at once with 0, silently.
        cat: copies stdin to stdout until EOF.
        echo: writes its text and a newline to stdout.
        exit: ends with that code.
        sleep: runs for that many seconds, reads nothing.
        printenv: writes the variable's value and a newline.
        pwd: writes the working directory and a newline.
        stderr: writes its text to stderr; a newline may follow.
        out: writes that many bytes to stdout, `pattern` again and again, and ends.
        pattern: what `out` repeats.
        shell: runs a POSIX shell script; everything finer is built on it.
        directory: a directory that exists and is no program.
    """

    name: str
    true: list[str]
    cat: list[str]
    echo: Callable[[str], list[str]]
    exit: Callable[[int], list[str]]
    sleep: Callable[[int], list[str]]
    printenv: Callable[[str], list[str]]
    pwd: list[str]
    stderr: Callable[[str], list[str]]
    out: Callable[[int], list[str]]
    pattern: bytes
    shell: Callable[[str], list[str]] | None = None
    directory: str | None = None

    def written(self, count: int) -> bytes:
        """What `out(count)` writes."""
        return (self.pattern * (count // len(self.pattern) + 1))[:count]


def _sh(script: str, *words: str) -> list[str]:
    return ["sh", "-c", script, "sh", *words]


POSIX = Vocabulary(
    name="posix",
    true=["true"],
    cat=["cat"],
    echo=lambda text: _sh('printf "%s\\n" "$1"', text),
    exit=lambda code: _sh(f"exit {code}"),
    sleep=lambda seconds: ["sleep", str(seconds)],
    printenv=lambda name: _sh('eval "printf \\"%s\\\\n\\" \\"\\${$1-}\\""', name),
    pwd=_sh("pwd"),
    stderr=lambda text: _sh('printf "%s" "$1" >&2', text),
    out=lambda count: _sh('yes 0123456789 2>/dev/null | head -c "$1"', str(count)),
    pattern=b"0123456789\n",
    shell=_sh,
    directory="/",
)
"""sh, cat, true, sleep, yes, head -c; for trees also setsid, where it is there; for terminals tty and stty."""

MEMORY = Vocabulary(
    name="memory",
    true=["true"],
    cat=["cat"],
    echo=lambda text: ["echo", text],
    exit=lambda code: ["exit", str(code)],
    sleep=lambda seconds: ["sleep", str(seconds)],
    printenv=lambda name: ["printenv", name],
    pwd=["pwd"],
    stderr=lambda text: ["stderr", text],
    out=lambda count: ["out", str(count)],
    pattern=bytes(range(256)),
)
"""The built-in programs of the `memory` runtime: no shell, no directories, no users."""

VOCABULARIES = {vocabulary.name: vocabulary for vocabulary in (POSIX, MEMORY)}


# --- Scripts that leave something running ---


LEFT_BYTES = limits.MIB
"""More than a pipe and a socket hold."""


def leaves(token: str) -> str:
    """Leaves a session of its own that has `token` in its command line, from now on, and holds no stream.

    The shell waits for the end of what it substitutes, and so until what it leaves is that far.
    """
    return f": $(setsid sh -c 'exec >/dev/null 2>&1; sleep 300; : {token}' &); "


def outlives(token: str, after_s: int = 1) -> str:
    """Leaves such a session, with its token there some seconds later: proof that it has outlived the command."""
    return f"setsid sh -c 'sleep {after_s}; {becomes(token)}' >/dev/null 2>&1 & "


def becomes(token: str) -> str:
    """Gets the token into its command line; it is cut in two, so that none has it before this is reached."""
    return f'exec sh -c "sleep 300; : {token[:8]}""{token[8:]}" >/dev/null 2>&1'


def writes_on(witness: str, done: str, after_s: int = 0) -> str:
    """Says `up`, and leaves a writer of `LEFT_BYTES` to each stream and a witness.

    Parameters:
        witness: in the command line of a process that is there from the beginning and holds no stream.
        done: in the writer's command line once every byte was taken: not after SIGPIPE, not while it is held up.
        after_s: how long the writer waits before it begins.
    """
    write = f"head -c {LEFT_BYTES} /dev/zero"
    watch = f"sh -c 'sleep 300; : {witness}' >/dev/null 2>&1"
    return f"{watch} & (sleep {after_s}; {write} && {write} >&2 && {becomes(done)}) & echo up"
