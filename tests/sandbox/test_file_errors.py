"""Errors of files, as Python has them."""

import errno

import pytest

from fastclaw.errors import REASONS, IoError
from fastclaw.sandbox import FileTooLarge
from fastclaw.sandbox.file_errors import os_error

OF_THE_RUNTIME = {"io_error", "runtime_exited", "no_answer", "overloaded"}
"""Reasons of an IoError that are about no file."""


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("not_found", FileNotFoundError),
        ("permission_denied", PermissionError),
        ("is_directory", IsADirectoryError),
        ("not_directory", NotADirectoryError),
        ("exists", FileExistsError),
        ("not_empty", OSError),
        ("too_large", FileTooLarge),
    ],
)
@pytest.mark.parametrize("told", [{}, {"errno": None}])
def test_each_reason_has_its_class(reason: str, expected: type[OSError], told: dict[str, None]) -> None:
    found = os_error(IoError(f"a/b: {reason}", reason, path="a/b", **told), "a/b")
    assert type(found) is expected
    assert found.filename == "a/b"


def test_every_reason_of_a_file_has_a_number() -> None:
    of_files = list(REASONS)[list(REASONS).index("is_directory") : list(REASONS).index("no_answer")]
    for reason in of_files:
        assert os_error(IoError("p: x", reason), "p") is not None, reason
    for reason in OF_THE_RUNTIME:
        assert os_error(IoError("x", reason), "p") is None


def test_the_kernels_own_number_wins() -> None:
    found = os_error(IoError("d: no_space", "no_space", errno=errno.EDQUOT), "d")
    assert found is not None
    assert found.errno == errno.EDQUOT


def test_what_it_is_about_beneath_the_path_is_said() -> None:
    found = os_error(IoError("d: ../x: outside", "outside", errno=None, name="../x"), "d")
    assert found is not None
    assert found.filename == "d/../x"
    assert "outside" in str(found)


def test_the_size_of_what_is_too_large() -> None:
    found = os_error(IoError("f: too_large", "too_large", errno=None, size=11), "f")
    assert isinstance(found, FileTooLarge)
    assert found.size == 11
    assert "11 bytes" in str(found)
