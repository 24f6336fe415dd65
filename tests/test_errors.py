"""The error tree: codes, words and whose fault it is, as the contract lists them."""

import pytest

from fastclaw import errors
from fastclaw.errors import BY_CODE, REASONS, ExecFailed, FastclawError, InvalidParams, ProtocolError

CONTRACT = {
    -32700: ("parse_error", ""),
    -32600: ("invalid_request", ""),
    -32601: ("method_not_found", ""),
    -32602: ("invalid_params", ""),
    -32603: ("internal", ""),
    -32800: ("cancelled", ""),
    -32000: ("exec_failed", "exec failed: "),
    -32001: ("start_failed", "start failed: "),
    -32002: ("invalid_state", "invalid state: "),
    -32003: ("protocol_error", "protocol error: "),
    -32004: ("io_error", "io error: "),
}


def test_the_codes_are_those_of_the_contract() -> None:
    assert {code: (error.kind, error.prefix) for code, error in BY_CODE.items()} == CONTRACT


@pytest.mark.parametrize("error", BY_CODE.values(), ids=lambda error: str(error.kind))
def test_every_class_has_a_known_reason_and_its_prefix(error: type[FastclawError]) -> None:
    wire = error("text").to_wire()
    assert wire["message"] == error.prefix + "text"
    assert wire["data"]["reason"] in REASONS
    assert (wire["data"]["fault"], wire["data"]["retryable"]) == REASONS[wire["data"]["reason"]]


def test_an_unknown_reason_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        ExecFailed("x", "made_up")


def test_overloaded_may_be_retried_and_a_missing_binary_not() -> None:
    assert ExecFailed("x", "overloaded").retryable
    assert not ExecFailed("x", "not_found").retryable
    assert ExecFailed("x", "not_found").fault == "caller"
    assert ExecFailed("x", "engine_timeout").fault == "engine"


def test_extra_data_is_on_the_wire() -> None:
    assert InvalidParams("x", path="$.cmd[0]").to_wire()["data"]["path"] == "$.cmd[0]"


@pytest.mark.parametrize("error", [kind("why", "overloaded", path="$.x") for kind in BY_CODE.values()])
def test_it_comes_back_from_the_wire(error: FastclawError) -> None:
    back = FastclawError.from_wire(error.to_wire())
    assert type(back) is type(error)
    assert back.to_wire() == error.to_wire()


@pytest.mark.parametrize("strange", [None, 1, "x", [], {}, {"code": "x"}, {"code": 7, "data": 3}, {"code": None}])
def test_a_strange_wire_error_is_a_protocol_error(strange: object) -> None:
    assert isinstance(FastclawError.from_wire(strange), ProtocolError)


def test_every_class_of_the_module_is_in_the_tree() -> None:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert all(issubclass(value, FastclawError) for value in classes)
