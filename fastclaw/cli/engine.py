"""`fastclaw engine`: a private engine that stays, and the image it needs."""

from pathlib import Path

import click
import msgspec

from fastclaw.linux import own_process
from fastclaw.options import Options
from fastclaw.podman.api import EngineLifecycle
from fastclaw.podman.service.daemon import EngineStatus, engine_start, engine_status, engine_stop
from fastclaw.podman.service.facts import engine_url, host_facts
from fastclaw.podman.service.plan import DEFAULT_IMAGE, ServicePlan, plan_service
from fastclaw.podman.service.service import ManagedService
from fastclaw.podman.service.storage import default_run_dir, default_state_dir

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
    own_process.run(_make_image(engine_url(Options(url=url)), reference))
    click.echo(reference)


async def _make_image(url: str | None, reference: str) -> None:
    if url is not None:
        await _import_image(url, reference)
        return
    service = ManagedService(_plan(), default_state_dir(), default_run_dir())
    try:
        await service.start()
        await _import_image(service.url, reference)
    finally:
        await service.aclose()


async def _import_image(url: str, reference: str) -> None:
    lifecycle = EngineLifecycle(url)
    try:
        await lifecycle.make_image(reference)
    finally:
        await lifecycle.aclose()


def _plan() -> ServicePlan:
    return plan_service(host_facts(Path(default_state_dir())))


def _show(state: EngineStatus, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(state).decode())
    elif not state.running:
        click.echo("the private engine is not running; fastclaw engine start starts it")
    elif state.answers:
        click.echo(f"running, pid {state.pid}: use --url {state.url}")
    else:
        click.echo(f"pid {state.pid} runs but does not answer; see {state.log}, then fastclaw engine stop")
