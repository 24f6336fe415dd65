"""Three network namespaces with no way out: a client, a host whose firewall turns connections, and a server.

The client's connections to ports 80 and 443 are turned to `PORT` of the host, as a bridge's rules do. The server's
addresses are public ones (those of AS112, RFC 7535), which exist here within these namespaces only.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

Result = TypeVar("Result")

PORT = 3_129
SERVER = "192.31.196.1"
SERVER_V6 = "2620:4f:8000::1"
HOST = "10.99.0.1"
CLIENT = "10.99.0.2"

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h

_SET_UP = f"""
link add toc netns {{host}} type veth peer name eth0 netns {{client}}
link add tos netns {{host}} type veth peer name eth0 netns {{server}}
-n {{host}} addr add {HOST}/24 dev toc
-n {{host}} addr add fd99::1/64 dev toc nodad
-n {{host}} addr add 192.31.196.254/24 dev tos
-n {{host}} addr add 2620:4f:8000::254/64 dev tos nodad
-n {{client}} addr add {CLIENT}/24 dev eth0
-n {{client}} addr add fd99::2/64 dev eth0 nodad
-n {{server}} addr add {SERVER}/24 dev eth0
-n {{server}} addr add {SERVER_V6}/64 dev eth0 nodad
-n {{host}} link set lo up
-n {{host}} link set toc up
-n {{host}} link set tos up
-n {{client}} link set eth0 up
-n {{server}} link set eth0 up
-n {{client}} route add default via {HOST}
-n {{client}} route add default via fd99::1
"""

_RULES = f"""
table inet turned {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        iifname "toc" tcp dport {{ 80, 443 }} redirect to :{PORT}
    }}
}}
"""


class Namespaces:
    """Parameters:
    names: of the namespaces, by what they are for.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def run(self, where: str, work: Callable[[], Result]) -> Result:
        """Call `work` in a thread of a namespace: what sockets it makes belong there for good."""
        results: list[Result] = []
        failures: list[BaseException] = []

        def enter() -> None:
            try:
                with Path("/run/netns", self._names[where]).open() as namespace:
                    if _LIBC.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                results.append(work())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def run_on_host(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Run a program on the host's side."""
        return self.run("host", lambda: uvloop.run(main))

    def tcp(self, where: str, family: int = socket.AF_INET) -> socket.socket:
        """A TCP socket of a namespace; non-blocking."""
        sock = self.run(where, lambda: socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        return sock

    def listener(self, where: str, address: str, port: int) -> socket.socket:
        """A listening one."""
        sock = self.tcp(where, socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(64)
        return sock


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a network namespace without asking")


def run_apart(program: str, *args: str, mounts: bool = False, **options: Any) -> str:
    """What a Python program prints that runs in a network namespace of its own, and says nothing on stderr.

    Parameters:
        mounts: what it mounts is its own, too.
        options: of `subprocess.run`.
    """
    alone = ["unshare", "--net", *(["--mount"] if mounts else [])]
    done = subprocess.run(
        [*alone, sys.executable, "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def _do(*argv: str, text: str | None = None) -> None:
    subprocess.run(argv, input=text, text=True, check=True, capture_output=True, timeout=30)


@contextmanager
def namespaces() -> Iterator[Namespaces]:
    """Made, and removed with all that is in them."""
    names = {role: f"fct-{os.getpid()}-{role}" for role in ("client", "host", "server")}
    try:
        for name in names.values():
            _do("ip", "netns", "add", name)
        for line in _SET_UP.format(**names).strip().splitlines():
            _do("ip", *line.split())
        _do("ip", "netns", "exec", names["host"], "nft", "-f", "-", text=_RULES)
        yield Namespaces(names)
    finally:
        for name in names.values():
            subprocess.run(("ip", "netns", "delete", name), check=False, capture_output=True, timeout=30)
