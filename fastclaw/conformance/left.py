"""Shell scripts that leave something running.

Owns the scripts; `outside` sees what they left. Knows no promise.
"""

import uuid

from fastclaw import limits
from fastclaw.conformance.outside import seen
from fastclaw.conformance.rig import Rig, Session

LEFT_BYTES = limits.MIB
"""More than a pipe and a socket hold."""


def leaves(token: str) -> str:
    """Leaves a session of its own that has `token` in its command line, from now on, and holds no stream.

    The shell waits for the end of what it substitutes, and so until what it leaves is that far.
    """
    return f": $(setsid sh -c 'exec >/dev/null 2>&1; sleep 300; : {token}' &); "


def outlives(token: str, after_s: int = 1) -> str:
    """The same, with the token there some seconds later only: whoever ends it with the command has done so by then."""
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


async def must_be_seen(rig: Rig, session: Session) -> None:
    """Before a check says that something has ended too soon.

    Raises:
        NotOffered: not even what certainly lives can be seen from this host.
    """
    token = uuid.uuid4().hex
    await session.exec(rig.shell(f"sleep 300; : {token}"))
    await seen(token)
