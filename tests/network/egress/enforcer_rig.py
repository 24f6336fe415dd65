"""An enforcer with a resolver whose answers a test writes, and listeners on loopback."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.enforcement import AccessRequest, PolicyEnforcer
from fastclaw.network.egress.policy import Refused
from tests.balance import balanced
from tests.network.egress.rig import config, many

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from fastclaw.network.egress.addresses import Address

ONE, TWO, SIX = ip_address("127.0.0.1"), ip_address("127.0.0.2"), ip_address("::1")
PUBLIC, OTHER = ip_address("8.8.8.8"), ip_address("9.9.9.9")
"""Never connected to here: they are asked about only."""


class ScriptedNames:
    """A resolver whose answers a test writes: a list of answers is given out one by one, the last one for ever."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = {name.replace("_", "."): list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        found = self.answers.get(name)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answer: list[Address] = found.pop(0) if len(found) > 1 else found[0]
        return answer


class Rig:
    """An enforcer, and what came of it."""

    def __init__(self, enforcer: PolicyEnforcer, counters: Counters, names: ScriptedNames, log: Path | None) -> None:
        self.enforcer, self.counters, self.names, self._log = enforcer, counters, names, log

    @property
    def counts(self) -> dict[str, Any]:
        return {name: count for name, count in self.counters.snapshot().items() if count and name != "bytes"}

    async def admits(self, host: str | Address, port: int = 443, address: Address | None = None) -> list[Address]:
        return await self.enforcer.admit(
            AccessRequest("connect" if address is None else "transparent", host, port, None, address)
        )

    async def refusal(self, host: str | Address, port: int = 443, address: Address | None = None) -> str:
        with pytest.raises(Refused) as caught:
            await self.admits(host, port, address)
        return caught.value.reason

    async def lines(self) -> list[dict[str, Any]]:
        """What was written down; the enforcer is closed for it."""
        await self.enforcer.aclose()
        assert self._log is not None
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@asynccontextmanager
async def an_enforcer(
    allow: Sequence[str], deny: Sequence[str] = (), names: ScriptedNames | None = None, **changes: Any
) -> AsyncIterator[Rig]:
    """An enforcer of its own, which leaves nothing behind."""
    names = names or ScriptedNames()
    async with balanced():
        counters = Counters.create()
        settings = config(allow, deny=list(deny), **changes)
        made = PolicyEnforcer(settings, counters, pytest.fail, names, many())
        try:
            yield Rig(made, counters, names, None if settings.log is None else Path(settings.log))
        finally:
            await made.aclose()
            counters.close()


@contextmanager
def listening(*hosts: str, backlog: int = 16) -> Iterator[list[socket.socket]]:
    """Listeners on one port of several addresses."""
    listeners: list[socket.socket] = []
    try:
        for host in hosts:
            listener = socket.socket()
            listeners.append(listener)
            listener.bind((host, listeners[0].getsockname()[1] if len(listeners) > 1 else 0))
            listener.listen(backlog)
            listener.setblocking(False)
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def was_connected_to(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
