"""One line per event, whatever is in it."""

import logging
from collections.abc import Iterator

import orjson
import pytest

from fastclaw.cli import log


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # or force=True would close pytest's own
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def fail() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger("x").exception("went\nwrong")


def test_text_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("text")
    fail()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "went | wrong" in text
    assert "ValueError: first | second" in text


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    fail()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    entry = orjson.loads(err)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "x", "went\nwrong")
    assert "ValueError" in entry["traceback"]


def test_json_survives_a_path_that_is_no_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    logging.getLogger("x").warning("no file %s", "a\udc80")
    assert orjson.loads(capsys.readouterr().err)["message"] == "no file a\\udc80"


def test_the_level_holds(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("text", "error")
    logging.getLogger("x").warning("quiet")
    assert capsys.readouterr().err == ""
