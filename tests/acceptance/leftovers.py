"""What programs of a test are still there, and who sleeps for them; they are known by a word.

Looks from this host's side at every process there is, in a container or not.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path

from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE
from fastclaw.linux import proc
from tests.pids import has_not_ended

TOKEN = f"fcl{uuid.uuid4().hex[:8]}"
"""In the command line of every program that is started by a test; the name of a template's worker, which has none."""
END_S = 20
"""For what was killed to be gone."""
LOOK_S = 0.01
"""Between two looks at what sends no event: /proc."""


def programs() -> list[int]:
    """Those that are still there, zombies not counted."""
    found = []
    for pid in proc.pids():
        with suppress(OSError):
            known = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()
            if TOKEN.encode() in known and has_not_ended(pid):
                found.append(pid)
    return found


def end_programs() -> None:
    """From this host's side, so that whoever sleeps wakes up."""
    end = time.monotonic() + END_S
    while (left := programs()) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_S)


def asleep() -> list[str]:
    """Who on this host sleeps where no signal wakes it, and in which function of the kernel."""
    found = []
    for pid in proc.pids():
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            name, where = (Path(f"/proc/{pid}/{file}").read_text().strip() for file in ("comm", "wchan"))
            found += [f"{name} ({pid}) in {where}"] if state == "D" else []
    return found


def socket_directories() -> set[Path]:
    """Of every runtime of this test run."""
    return set(Path(os.environ["XDG_RUNTIME_DIR"]).glob("fastclaw-*"))


async def nothing_left(sockets: set[Path], namespace: str, url: str | None) -> None:
    """Of a runtime that is down: neither a program nor a container, and no socket but those of `sockets`, before it."""
    assert programs() == []
    assert socket_directories() == sockets
    if url is not None:
        engine = EngineLifecycle(url)
        assert await engine.list_containers({LABEL_NAMESPACE: namespace}) == []
        await engine.aclose()
