"""Command-line options that become `options` of `initialize`: the same for every command that starts a runtime."""

import functools
from collections.abc import Callable
from typing import Any

import click
import msgspec

from fastclaw.options import RUNTIMES, Options
from fastclaw.params import convert


def runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--runtime`, `--image`, `--url` and `--option`, collected in its parameter `options`."""

    @click.option("--runtime", type=click.Choice(["auto", *RUNTIMES]), default="auto", show_default=True)
    @click.option(
        "--image",
        metavar="REFERENCE",
        help="Image of the containers; a small one of what is here by default.",
    )
    @click.option("--url", metavar="URL", help="Engine to use; a private one by default.")
    @click.option(
        "--option",
        "-o",
        "extra",
        multiple=True,
        metavar="NAME=JSON",
        help="Any other option of initialize; may be repeated.",
    )
    @functools.wraps(command)
    def wrapped(runtime: str, image: str | None, url: str | None, extra: tuple[str, ...], **others: Any) -> Any:
        options: dict[str, Any] = {"runtime": runtime}
        options.update({name: value for name, value in (("image", image), ("url", url)) if value is not None})
        options.update(setting(entry) for entry in extra)
        convert(options, Options, "options")  # a clear error here, before anything starts
        return command(options=options, **others)

    return wrapped


def setting(entry: str) -> tuple[str, Any]:
    """`name=json`; what is no JSON is taken as a string."""
    name, equals, text = entry.partition("=")
    if not equals:
        raise click.BadParameter(f"{entry!r} has no '='; write NAME=JSON", param_hint="--option")
    try:
        return name, msgspec.json.decode(text)
    except msgspec.DecodeError:
        return name, text
