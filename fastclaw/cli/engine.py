"""`fastclaw engine`: a private engine that stays, and the image it needs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import click
import msgspec

from fastclaw import limits
from fastclaw.engine.service.facts import engine_url, host_facts
from fastclaw.engine.service.plan import DEFAULT_IMAGE, HostFacts, ServicePlan, plan_service
from fastclaw.engine.service.service import EngineStatus, ManagedService, engine_start, engine_status, engine_stop
from fastclaw.engine.service.storage import default_run_dir, default_state_dir
from fastclaw.linux import own_process
from fastclaw.options import Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.engine.api import EngineLifecycle

_as_json = click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")


@click.group()
def engine() -> None:
    """A private Podman service of our own: start it once, use it with --url, stop it."""


@engine.command()
@_as_json
def start(as_json: bool) -> None:
    """Start the private engine, or find it running, and print its URL."""
    _show(own_process.run(engine_start(_plan(), default_state_dir(), default_run_dir())), as_json)


@engine.command()
@_as_json
def stop(as_json: bool) -> None:
    """Stop the private engine."""
    _show(own_process.run(engine_stop(default_run_dir())), as_json)


@engine.command()
@_as_json
def status(as_json: bool) -> None:
    """Say whether the private engine runs and answers."""
    _show(own_process.run(engine_status(default_run_dir())), as_json)


@engine.command()
@click.option("--url", metavar="URL", help="Engine whose storage gets the image; our own by default.")
@click.argument("reference", default=DEFAULT_IMAGE)
def image(url: str | None, reference: str) -> None:
    """Make a small image of what is on this host: busybox where static, else its shell and tools."""
    own_process.run(_make_image(url, reference))
    click.echo(reference)


async def _make_image(url: str | None, reference: str) -> None:
    async with an_engine(url) as lifecycle:
        await lifecycle.make_image(reference)


@asynccontextmanager
async def an_engine(url: str | None, facts: HostFacts | None = None) -> AsyncIterator[EngineLifecycle]:
    """The engine that is named here or by the environment, else a private one for the time being.

    Raises:
        StartFailed: it does not answer, or cannot be started.
    """
    from fastclaw.engine.api import EngineLifecycle  # not for help and completion: it takes a third of a second

    async with AsyncExitStack() as ends:
        found = engine_url(Options(url=url))
        if found is None:
            service = ManagedService(_plan(facts), default_state_dir(), default_run_dir())
            ends.push_async_callback(service.aclose)
            await service.start()
            found = service.url
        lifecycle = EngineLifecycle(found)
        ends.push_async_callback(lifecycle.aclose)
        yield lifecycle


@asynccontextmanager
async def a_docker(url: str) -> AsyncIterator[EngineLifecycle]:
    """The Docker at a URL.

    Raises:
        StartFailed: it does not answer, or is none.
    """
    from fastclaw.engine.api import EngineLifecycle  # not for help and completion: it takes a third of a second
    from fastclaw.engine.dialects import find_docker

    timeout_s = limits.ENGINE_TIMEOUT_MS / 1000
    lifecycle = EngineLifecycle(url, timeout_s, dialect=await asyncio.to_thread(find_docker, url, timeout_s))
    try:
        yield lifecycle
    finally:
        await lifecycle.aclose()


def _plan(facts: HostFacts | None = None) -> ServicePlan:
    return plan_service(facts or host_facts(default_state_dir()))


def _show(state: EngineStatus, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(state).decode())
    elif not state.running:
        click.echo("the private engine is not running; fastclaw engine start starts it")
    elif state.answers:
        click.echo(f"running, pid {state.pid}: use --url {state.url}")
    else:
        click.echo(f"pid {state.pid} runs but does not answer; see {state.log}, then fastclaw engine stop")
