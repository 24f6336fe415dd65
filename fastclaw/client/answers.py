"""Params without what is not given, and answers as what they should be."""

from typing import Any, TypeVar

import msgspec

from fastclaw.errors import ProtocolError

Shape = TypeVar("Shape")


def given(**params: Any) -> dict[str, Any]:
    """The params that are not None."""
    return {name: value for name, value in params.items() if value is not None}


def shaped(answer: Any, shape: type[Shape], method: str) -> Shape:
    """An answer of a method.

    Raises:
        ProtocolError: it has another shape.
    """
    try:
        return msgspec.convert(answer, shape)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the runtime's answer to {method} has the wrong shape: {error}") from error
