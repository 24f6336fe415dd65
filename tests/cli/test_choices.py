"""Options on the command line that become options of `initialize`."""

from __future__ import annotations

from typing import Any

import click
import pytest

from fastclaw.cli.choices import runtime_options, setting
from fastclaw.errors import InvalidParams


def collected(*arguments: str) -> Any:
    """What a command with these options is given."""

    @click.command()
    @runtime_options
    @click.option("--other")
    def command(options: dict[str, Any], other: str | None) -> tuple[dict[str, Any], str | None]:
        return options, other

    return command.main(list(arguments), standalone_mode=False)


def test_nothing_given_is_the_automatic_choice() -> None:
    assert collected() == ({"runtime": "auto"}, None)


def test_every_option_gets_its_place() -> None:
    options, other = collected(
        "--runtime", "podman", "--image", "i", "--url", "unix:///x", "-o", "containers=2", "--other", "o"
    )
    assert options == {"runtime": "podman", "image": "i", "url": "unix:///x", "containers": 2}
    assert other == "o"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("a=1", ("a", 1)),
        ('a={"b": [true, null]}', ("a", {"b": [True, None]})),
        ('a="1"', ("a", "1")),
        ("a=never", ("a", "never")),
        ("a=", ("a", "")),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_a_setting_is_json_or_else_text(entry: str, expected: tuple[str, Any]) -> None:
    assert setting(entry) == expected


def test_a_setting_needs_a_value() -> None:
    with pytest.raises(click.BadParameter, match="NAME=JSON"):
        collected("-o", "containers")


def test_a_wrong_name_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidParams) as caught:
        collected("-o", "max_proceses=1")
    assert caught.value.data == {"path": "options.max_proceses", "nearest": "max_processes"}


def test_a_wrong_shape_is_refused_before_anything_starts() -> None:
    with pytest.raises(InvalidParams) as caught:
        collected("-o", "env=[1]")
    assert caught.value.data["path"] == "options.env"


def test_a_wrong_runtime_is_refused_with_the_choices() -> None:
    with pytest.raises(click.BadParameter, match="podman"):
        collected("--runtime", "vm")
