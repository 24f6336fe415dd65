"""The event loop that production runs on. Imported by the CLI only: the SDK works on any asyncio loop."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run `main` to its end on uvloop.

    Parameters:
        main: the program; its result is returned, its exception raised.
    """
    return uvloop.run(main)
