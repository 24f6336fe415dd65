"""A small world outside for the tests of the network: an origin in a network namespace, its names, a canary here.

Packets stay on this machine: 198.51.100.0/24 (TEST-NET-2, RFC 5737) is blackholed first, and then led to the namespace.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastclaw.client import RuntimeClient
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE
from fastclaw.network.bridge.firewall import parse_table, parse_tables
from tests.engine_fixtures import unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.engine_fixtures import EngineService

ORIGIN = "198.51.100.10"
UNLISTED = "198.51.100.11"
"""The origin too, under an address that no rule names."""

OUTSIDE = "198.51.100.0/24"
GATEWAY = "198.51.100.1"
NAMESPACE = "egress"
SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman", "--log-level", "warning"]
_NAMED = 'mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/resolv.conf" /etc/resolv.conf && shift && exec "$@"'

NAMES = {
    "origin.test": ORIGIN,
    "other.test": ORIGIN,
    "sub.wild.test": ORIGIN,
    "loop.test": "127.0.0.1",
    "meta.test": "169.254.169.254",
    "six.test": "::1",
}
WAIT_S = 20


class Origin:
    """The server in its namespace, and everything that has reached it."""

    def __init__(self, directory: Path) -> None:
        names = "".join(f"{at} {name}\n" for name, at in NAMES.items())
        (directory / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (directory / "resolv.conf").write_text(f"nameserver {ORIGIN}\noptions timeout:1 attempts:1\n")
        self._directory = directory
        self.certificate = directory / "certificate.pem"
        self._key = directory / "key.pem"
        self._netns = f"fco{os.getpid()}"
        self._said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.seen: list[dict[str, Any]] = []

    def named(self, *command: str) -> list[str]:
        """A command line for whom our names are valid, and who asks the origin for others, which tells of it."""
        return ["unshare", "-m", "sh", "-c", _NAMED, "sh", str(self._directory), *command]

    def start(self) -> None:
        near, far = f"fcn{os.getpid()}", f"fcf{os.getpid()}"
        _run("ip", "route", "replace", "blackhole", OUTSIDE, "metric", "4000")
        _run("ip", "netns", "add", self._netns)
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", self._netns)
        _run("ip", "addr", "add", f"{GATEWAY}/24", "dev", near)
        _run("ip", "link", "set", near, "up")
        for command in (
            ["addr", "add", f"{ORIGIN}/24", "dev", far],
            ["link", "set", far, "up"],
            ["link", "set", "lo", "up"],
        ):
            _run("ip", "-n", self._netns, *command)
        self._make_certificate()
        program = [sys.executable, "-m", "tests.acceptance.origin", str(self.certificate), str(self._key)]
        argv = ["ip", "netns", "exec", self._netns, *program]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._said.get(timeout=WAIT_S) == {"ready": True}

    def _make_certificate(self) -> None:
        names = ",".join(f"DNS:{name}" for name in NAMES)
        _run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=origin.test", "-addext", f"subjectAltName={names},IP:{ORIGIN}", "-days", "2"),
            *("-keyout", str(self._key), "-out", str(self.certificate)),
        )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(json.loads(line))

    def drain(self) -> list[dict[str, Any]]:
        """What has reached it since the last time. A marker of our own goes last, so nothing is on its way any more."""
        marker = os.urandom(8).hex()
        with socket.create_connection((ORIGIN, 22), timeout=WAIT_S) as mark:
            mark.recv(7)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark:
            mark.sendto(marker.encode(), (ORIGIN, 4444))
        found: list[dict[str, Any]] = []
        while (event := self._said.get(timeout=WAIT_S)).get("data") != marker:
            found.append(event)
        del found[next(at for at in reversed(range(len(found))) if found[at]["port"] == 22)]
        return found

    def stop(self) -> None:
        if hasattr(self, "_process"):
            self._process.communicate(timeout=WAIT_S)
            self._reader.join()
        subprocess.run(["ip", "netns", "del", self._netns], check=False)
        subprocess.run(["ip", "route", "del", "blackhole", OUTSIDE, "metric", "4000"], check=False)


@contextmanager
def an_origin() -> Iterator[Origin]:
    """Up for a module's tests. The host's end of the link goes with the namespace."""
    missing = [name for name in ("ip", "nft", "openssl", "unshare") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        unusable(f"network tests need root and {', '.join(missing) or 'nothing else'}")
    directory = Path(tempfile.mkdtemp(prefix="fco", dir="/tmp"))
    origin = Origin(directory)
    try:
        origin.start()
        yield origin
    finally:
        origin.stop()
        shutil.rmtree(directory)


class Canary:
    """Services on every address of this host, loopback included: nobody inside may reach them.

    Attributes:
        port: of TCP and of UDP.
        name: of an abstract Unix socket.
    """

    def __init__(self) -> None:
        self._tcp = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("0.0.0.0", self.port))
        self.name = f"fastclaw-canary-{os.getpid()}"
        self._unix = socket.socket(socket.AF_UNIX)
        self._unix.bind(f"\0{self.name}")
        self._unix.listen()

    @property
    def was_reached(self) -> bool:
        return bool(select.select([self._tcp, self._udp, self._unix], [], [], 0)[0])

    def close(self) -> None:
        for sock in (self._tcp, self._udp, self._unix):
            sock.close()


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=WAIT_S)


@asynccontextmanager
async def served(
    service: EngineService, origin: Origin, network: dict[str, Any], namespace: str = NAMESPACE, **options: Any
) -> AsyncIterator[RuntimeClient]:
    """A runtime with such a network; afterwards nothing of it is left: containers, rules, interfaces."""
    given = options_of(service, network, **options)
    async with RuntimeClient.spawn(origin.named(*SERVE), namespace=namespace, options=given) as client:
        ours = tables(client.pid)
        yield client
    engine = EngineLifecycle(service.url)
    try:
        assert await engine.list_containers({LABEL_NAMESPACE: namespace}) == []
    finally:
        await engine.aclose()
    assert tables(client.pid) == []
    assert interfaces(ours) == []


def options_of(service: EngineService, network: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Of `initialize`, with a warm Python where there is one and the lane can fork it."""
    given = {"url": service.url, "network": network, **options}
    if "image" in options and options.get("lane") != "rest":
        given["templates"] = {TEMPLATE: {"cmd": ["python3", "-m", "fastclaw.template", *PRELOADED]}}
    return given


def tables(pid: int) -> list[str]:
    """Firewall tables of a fastclaw."""
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True, timeout=WAIT_S)
    return [name for name in parse_tables(listed.stdout) if name.startswith(f"fastclaw_{pid}_")]


def interfaces(of_tables: list[str]) -> list[str]:
    """Interfaces of this host that belong to such tables."""
    tokens = [parsed[1] for name in of_tables if (parsed := parse_table(name)) is not None]
    return [name for name in os.listdir("/sys/class/net") if any(token in name for token in tokens)]


TEMPLATE = "python"
PRELOADED = ["-i", "json", "-i", "ssl", "-i", "urllib.request"]
"""A Python that has done its imports, where the lane can fork one: most of an attempt's time is that."""

CLIENT = Path(__file__).with_name("egress_client.py").read_text()


async def inside(client: RuntimeClient, word: str, *arguments: object, **request: Any) -> Any:
    """What an attempt inside has come to: a word of egress_client.py, with its arguments."""
    cmd = ["python3", "-c", CLIENT, word, *map(str, arguments)]
    if client.welcome is not None and "template" in client.welcome.capabilities:
        request["template"] = TEMPLATE
    async with await client.exec(cmd, stdin=False, **request) as process, asyncio.timeout(WAIT_S * 2):
        out, err = await process.communicate()
        record = await process.wait()
    assert record.exit_code == 0, err.decode()
    return json.loads(out)
