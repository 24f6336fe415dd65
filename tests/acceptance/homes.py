"""A runtime in directories of its own, by which everything that is left of it is found.

Every process that we start, in a container or not, names the directory in its command line or its environment, or sees
a mount that comes from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fastclaw.client import RuntimeClient
from fastclaw.engine.service.plan import ServicePlan, service_env, tool_argv
from fastclaw.engine.service.storage import service_paths
from fastclaw.linux import proc
from tests.pids import command_line

PROMISED_S = 2.0
"""From SIGKILL until nothing is left. Measured: 0.9 s at most, where nobody takes the cores."""
BUSY = 2
"""How much longer a machine may take whose cores are taken. Measured: 2.6 s at most, with a load of 10 on two cores."""
PATIENCE_S = 20

LAYERS = ("overlay", "vfs/dir")
"""Where a storage has them, by its driver: Podman takes vfs where it can mount no overlay."""
NAME = "[0-9a-f]" * 64
"""Of a layer and of a container."""

DAEMONS = "setsid sh -c 'setsid sleep 1000 & sleep 1000' & sleep 1000"
"""A command with a double fork into sessions of their own."""


class Home:
    """Where one private engine lives, and what is left of it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.run = base / "r"
        self.run.mkdir(mode=0o700)
        places = {"XDG_STATE_HOME": str(base / "s"), "XDG_RUNTIME_DIR": str(self.run)}
        self.env = {name: value for name, value in os.environ.items() if name != "CONTAINER_HOST"} | places

    def found(self, pattern: str) -> list[Path]:
        """Files of the engine, sorted."""
        return sorted(self.base.glob(pattern))

    def containers(self) -> set[str]:
        """Ids of what the storage holds."""
        return {path.name for path in self.found("s/fastclaw/*/storage/*-containers/" + NAME)}

    def inits(self) -> list[int]:
        """Pids of the containers' inits, as conmon wrote them down."""
        files = self.found("r/fastclaw/store-*/run/*-containers/*/userdata/pidfile")
        return [int(text) for file in files if (text := file.read_text())]

    def processes(self) -> list[str]:
        """Whatever runs and has to do with us."""
        needle = f"{self.base}/".encode()
        others = (pid for pid in proc.pids() if pid != os.getpid() and not proc.is_podman_pause(pid))
        return [line for pid in others if (line := _trace(pid, needle))]

    def mounts(self) -> list[str]:
        """Of this mount namespace, which is the host's."""
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if str(self.base) in line]

    def directories(self) -> list[str]:
        """What belongs to a run and not to the storage."""
        services = [path.name for path in self.found("r/fastclaw/*") if not path.name.startswith("store-")]
        return services + [path.name for path in self.found("r/fastclaw-*")]

    def records(self, plan: ServicePlan) -> str:
        """What Podman itself lists, in any state, and the storage's containers that Podman does not know."""
        state, run = self.base / "s" / "fastclaw", self.run / "fastclaw"
        paths = service_paths(state, run, run / "probe", plan)
        argv = [*tool_argv(plan, paths), "ps", "--all", "--external", "--format", "{{.ID}} {{.Status}}"]
        done = subprocess.run(argv, env=service_env(paths, os.environ), capture_output=True, text=True, check=True)
        return done.stdout

    def client(self, *words: str) -> RuntimeClient:
        """A runtime that is started, and not initialized yet."""
        command = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", *words]
        return RuntimeClient.spawn(command, env=self.env)


def _trace(pid: int, needle: bytes) -> str:
    """How a process is recognised as ours; empty where it is not. The mounts of a zombie cannot be read."""
    for name in ("cmdline", "environ", "mountinfo"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/{name}").read_bytes()
            if needle in text:
                return f"{pid} {name} {command_line(pid)[:200]!r}"
    return ""


class Watch:
    """Counts seconds, and leaves out those in which somebody waited for a core: they are no fault of ours."""

    def __init__(self) -> None:
        self._began, self._waited = time.monotonic(), waited_s()

    def seconds(self) -> float:
        """Since it was made."""
        passed = time.monotonic() - self._began
        return max(passed - (waited_s() - self._waited), passed / BUSY)


def waited_s() -> float:
    """How long somebody has waited for a core so far, by the kernel's own count (Documentation/accounting/psi.rst)."""
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return time.monotonic()  # it does not count: somebody may have waited all the time
    return int(some.rpartition("total=")[2]) / 1e6


async def killed(client: RuntimeClient) -> None:
    """SIGKILL, and its end."""
    os.kill(client.pid, signal.SIGKILL)
    assert await client.exited(PATIENCE_S) == -signal.SIGKILL


async def nothing_is_left(home: Home) -> None:
    """No process within the time; then no container, no volume, and no mount."""
    watch = Watch()
    while left := home.processes():
        assert watch.seconds() < PROMISED_S, left
        await asyncio.sleep(0.02)
    assert home.mounts() == []
    assert not home.containers(), home.containers()
    assert home.found("s/fastclaw/*/storage/volumes/fastclaw-*") == []
