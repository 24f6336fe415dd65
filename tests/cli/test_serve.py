"""`fastclaw serve` on the command line, and its log: one line per event, whatever is in it."""

import logging
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from fastclaw.cli.serve import configure_log
from tests.cli.programs import FASTCLAW_WITHOUT_PODMAN, assert_one_line, fastclaw, without_podman
from tests.served import Served


def test_nothing_to_read_is_a_clean_end() -> None:
    done = fastclaw("serve", "--runtime", "memory")
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("arguments", [("--runtime", "vm"), ("--log-format", "xml"), ("--nonsense",)])
def test_wrong_arguments_say_what_is_wrong(arguments: tuple[str, ...]) -> None:
    done = fastclaw("serve", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert arguments[0] in assert_one_line(done.stderr)


def test_auto_without_podman_is_local_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in without_podman(tmp_path).items():
        monkeypatch.setenv(name, value)
    with Served([*FASTCLAW_WITHOUT_PODMAN, "serve"], tmp_path / "log") as served:
        assert "nearest" in served.call("initialize", namespace="n", options={"runtime": "podmann"})["error"]["data"]
        served.initialize()
        assert served.call("health")["result"]["details"]["runtime"] == "local"
    log = (tmp_path / "log").read_text()
    assert "podman is not installed" in log
    assert "isolates nothing" in log


# --- The log ---


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
    configure_log("text")
    fail()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "went | wrong" in text
    assert "ValueError: first | second" in text


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_log("json")
    fail()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    entry = orjson.loads(err)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "x", "went\nwrong")
    assert "ValueError" in entry["traceback"]


def test_json_survives_a_path_that_is_no_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    configure_log("json")
    logging.getLogger("x").warning("no file %s", "a\udc80")
    assert orjson.loads(capsys.readouterr().err)["message"] == "no file a\\udc80"


def test_the_level_holds(capsys: pytest.CaptureFixture[str]) -> None:
    configure_log("text", "error")
    logging.getLogger("x").warning("quiet")
    assert capsys.readouterr().err == ""
