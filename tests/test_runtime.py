"""The value types: shapes and defaults of the contract."""

import msgspec
import pytest

from fastclaw.runtime import ExecRequest, ExitRecord, InitializeParams, InitializeResult, ProcessRuntime, Runtime


def test_empty_parts_of_a_result_are_left_out() -> None:
    assert msgspec.to_builtins(InitializeResult()) == {}
    assert msgspec.to_builtins(InitializeResult(env={"A": "1"})) == {"env": {"A": "1"}}


def test_the_defaults_of_an_exec() -> None:
    request = ExecRequest(cmd=["true"])
    assert (request.stdin, request.on_disconnect, request.tty, request.key) == (True, "eof", False, None)
    assert request.tty_size == (24, 80)


@pytest.mark.parametrize("namespace", ["a", "a.b-c_9", "9", "x" * 64])
def test_namespaces(namespace: str) -> None:
    assert msgspec.convert({"namespace": namespace}, InitializeParams).namespace == namespace


@pytest.mark.parametrize("namespace", ["", "-a", ".a", "a/b", "a b", "a\n", "ä", "x" * 65, None, 1])
def test_no_namespaces(namespace: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"namespace": namespace}, InitializeParams)


def test_a_gap_is_only_said_where_there_is_one() -> None:
    assert "gap" not in msgspec.to_builtins(ExitRecord(process_id="p", state="exited"))
    assert msgspec.to_builtins(ExitRecord(process_id="p", state="exited", gap=True))["gap"] is True


def test_a_runtime_with_extensions_needs_no_terminals() -> None:
    assert "resize" not in ProcessRuntime.__abstractmethods__


def test_a_runtime_needs_its_five_methods() -> None:
    assert Runtime.__abstractmethods__ == {"start", "exec", "health", "stop", "kill"}
