"""Names become addresses, by the host's own resolver and on the host only.

One lookup for each name at a time, however many wait for it; an answer is kept for a few seconds. What comes out is
not trusted here: the gate checks each address, and connects to what it has checked.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import network_limits
from fastclaw.network.egress.policy import Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fastclaw.network.egress.addresses import Address

    Lookup = Callable[[str], Awaitable[Sequence[Address]]]
    """A name's addresses, best first; raises OSError where it has none."""


class Missing(Refused):
    """There is no such name, as far as the host's resolver knows (EAI_NONAME, getaddrinfo(3))."""


class _Answer(NamedTuple):
    """Parameters:
    refused: why there are no addresses.
    expires: loop time.
    """

    addresses: list[Address]
    refused: Refused | None
    expires: float


class Resolver:
    """Parameters:
    timeout_s: for one name.
    lookup: instead of the host's resolver.
    """

    def __init__(self, timeout_s: float, lookup: Lookup | None = None) -> None:
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(network_limits.EGRESS_LOOKUPS, "lookup")  # each is started when it is needed
        self._lookup = lookup or self._ask_host
        self._answers: OrderedDict[str, _Answer] = OrderedDict()  # oldest first
        self._running: dict[str, asyncio.Task[_Answer]] = {}
        self._loop = asyncio.get_running_loop()

    async def resolve(self, name: str) -> list[Address]:
        """The addresses of a name, best first; never empty.

        Raises:
            Missing: `unresolved`: there is no such name.
            Refused: `unresolved`, or `connect_timeout` where the answer takes longer than `timeout_s`.
        """
        answer = self._answers.get(name)
        if answer is None or answer.expires <= self._loop.time():
            answer = await self._wait_for(name)
        if answer.refused is not None:
            raise type(answer.refused)(answer.refused.reason, answer.refused.text)  # one for each who waited
        return list(answer.addresses)

    async def aclose(self) -> None:
        """End every lookup. A thread that waits for the host's resolver is left to its end, which nobody hears."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_for(self, name: str) -> _Answer:
        """A lookup outlives those who wait for it, up to its deadline: who asks again finds it under way."""
        task = self._running.get(name)
        if task is None:
            if len(self._running) >= network_limits.EGRESS_LOOKUPS_WAITING:
                raise Refused("unresolved", f"{name} was not looked up: too many other names are")
            task = self._running[name] = self._loop.create_task(self._look_up(name), name=f"lookup of {name}")
        await asyncio.wait((task,), timeout=self._timeout_s)
        if not task.done():
            raise self._too_late(name)
        return task.result()

    async def _look_up(self, name: str) -> _Answer:
        """Raises nothing but CancelledError: perhaps nobody waits any more."""
        refused, addresses = None, []
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = list(dict.fromkeys(await self._lookup(name)))[: network_limits.EGRESS_ADDRESSES]
        except TimeoutError:
            refused = self._too_late(name)
        except (OSError, UnicodeError) as error:
            kind = Missing if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME else Refused
            refused = kind("unresolved", f"{name} has no address: {getattr(error, 'strerror', None) or error}")
        finally:
            del self._running[name]
        if not addresses and refused is None:
            refused = Refused("unresolved", f"{name} has no address")
        answer = _Answer(addresses, refused, self._loop.time() + network_limits.EGRESS_ANSWER_MS / 1000)
        if refused is None:
            self._keep(name, answer)
        return answer

    def _keep(self, name: str, answer: _Answer) -> None:
        self._answers[name] = answer
        self._answers.move_to_end(name)
        if len(self._answers) > network_limits.EGRESS_ANSWERS:
            self._answers.popitem(last=False)

    async def _ask_host(self, name: str) -> Sequence[Address]:
        return await self._loop.run_in_executor(self._threads, _getaddrinfo, name)

    def _too_late(self, name: str) -> Refused:
        return Refused("connect_timeout", f"{name} was not resolved within {self._timeout_s:g} s")


def _getaddrinfo(name: str) -> list[Address]:
    # Bytes: text would go through the IDNA codec, which takes a name for another one.
    found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [ip_address(address[0]) for _, _, _, _, address in found]
