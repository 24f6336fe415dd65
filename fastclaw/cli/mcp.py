"""`fastclaw mcp`: a sandbox as tools, for any client of the Model Context Protocol, over stdio."""

import sys
from typing import Any

import click

from fastclaw.adapters.mcp.one_sandbox import OneSandbox
from fastclaw.cli.commands import setting, size
from fastclaw.cli.serve import configure_log
from fastclaw.linux import own_process
from fastclaw.options import INHERITED, RUNTIMES, Options
from fastclaw.params import convert
from fastclaw.sandbox.units import milliseconds

_SIGNALLED = 128
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _duration(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Seconds."""
    if text is None:
        return None
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    try:
        return float(number) * unit
    except ValueError:
        raise click.BadParameter(f"{text!r} is no duration; write seconds, or 30m, 8h, 1d") from None


@click.command()
@click.option("--runtime", type=click.Choice(["auto", *RUNTIMES]), default="auto", show_default=True)
@click.option("--image", metavar="REFERENCE", help="Image of the sandbox; a small one of what is here by default.")
@click.option("--url", metavar="URL", help="Engine to use; a private one by default.")
@click.option(
    "--allow",
    multiple=True,
    metavar="HOST[:PORTS]",
    help="Let the sandbox reach this through the egress proxy; may be repeated. By default it reaches nothing.",
)
@click.option("--memory", metavar="SIZE", callback=size, help="Memory of the sandbox at most, as 2g.")
@click.option("--disk", metavar="SIZE", callback=size, help="What it may write at most, as 10g.")
@click.option("--pids", type=click.IntRange(min=1), help="Processes and threads in it at most.")
@click.option("--user", metavar="NAME|UID[:GID]", help="User inside; the image's own by default.")
@click.option("--lifetime", metavar="TIME", callback=_duration, help="The sandbox ends after this, as 8h.")
@click.option(
    "--option", "-o", "extra", multiple=True, metavar="NAME=JSON", help="Any other option of initialize; repeatable."
)
def mcp(
    runtime: str,
    image: str | None,
    url: str | None,
    allow: tuple[str, ...],
    memory: int | None,
    disk: int | None,
    pids: int | None,
    user: str | None,
    lifetime: float | None,
    extra: tuple[str, ...],
) -> None:
    """Serve tools on one sandbox (run, read, write, list) at stdin and stdout, for an MCP client."""
    named = {
        "runtime": runtime,
        "image": image,
        "url": url,
        "memory_bytes": memory,
        "disk_bytes": disk,
        "pids_limit": pids,
        "user": user,
        "lifetime_ms": None if lifetime is None else milliseconds(lifetime),
    }
    options = {name: value for name, value in named.items() if value is not None} | dict(map(setting, extra))
    if allow:
        network = options.get("network", {})
        options["network"] = {**network, "allow": [*network.get("allow", []), *allow]}
    convert(options, Options, "options")
    host = {name: options.pop(name) for name in INHERITED if name in options}
    signum = own_process.run(_serve(host, options))
    sys.exit(0 if signum is None else _SIGNALLED + signum)


async def _serve(host: dict[str, Any], options: dict[str, Any]) -> int | None:
    try:
        from fastclaw.adapters.mcp.server import serve
    except ModuleNotFoundError as error:
        said = f"{error.name} is not installed; run: pip install 'PATH[mcp]', with PATH of fastclaw's checkout"
        raise click.ClickException(f"{said}, or uv tool install 'PATH[mcp]'") from error
    configure_log("text", "warning")
    signum: int | None = await serve(OneSandbox(host, options), _reached(options.get("network", {})))
    return signum


def _reached(network: dict[str, Any]) -> str | None:
    """In a few words, what the sandbox may reach; None is nothing."""
    if network.get("mode") == "open":
        return "any host"
    return ", ".join(network.get("allow", [])) or None
