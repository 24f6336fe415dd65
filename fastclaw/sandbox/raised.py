"""What the client raises, as users of a sandbox know it."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastclaw.errors import FastclawError, IoError
from fastclaw.sandbox.done import GONE, SandboxGone
from fastclaw.sandbox.file_errors import os_error


@contextmanager
def raised(path: str | None = None) -> Iterator[None]:
    """Within it, the end of a sandbox is a `SandboxGone`, and what is wrong with a file an `OSError`.

    Parameters:
        path: of the file that the call is about, as the caller gave it.
    """
    try:
        yield
    except SandboxGone:
        raise
    except FastclawError as error:
        if error.reason in GONE:
            raise SandboxGone(str(error).removeprefix(error.prefix), error.reason) from error
        if path is not None and isinstance(error, IoError) and (found := os_error(error, path)) is not None:
            raise found from error
        raise
