"""Params: their shapes, and the path of what is wrong."""

import re
import signal
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from fastclaw import limits
from fastclaw.errors import ExecFailed, InvalidParams
from fastclaw.options import Options
from fastclaw.params import (
    CancelParams,
    KillParams,
    NoParams,
    ResizeParams,
    SignalParams,
    WaitParams,
    check_exec,
    check_offered,
    check_run,
    convert,
    directory_of,
    fingerprint,
    group_limits,
    reader,
    rlimits,
    signal_number,
    trace_of,
)
from fastclaw.runtime import EnvironmentRequest, ExecRequest, GroupLimits, InitializeParams, RunRequest
from tests.strategies import JSON

Shape = TypeVar("Shape", bound=Struct)


def read(params: Any, shape: type[Shape]) -> Shape:
    """As a request brings them."""
    return reader(shape)(msgspec.Raw(msgspec.json.encode(params)))


@pytest.mark.parametrize(
    ("params", "shape", "path"),
    [
        ({}, ExecRequest, "$.cmd"),
        (None, ExecRequest, "$.cmd"),
        ([], ExecRequest, "$"),
        (1, ExecRequest, "$"),
        ({"cmd": []}, ExecRequest, "$.cmd"),
        ({"cmd": "true"}, ExecRequest, "$.cmd"),
        ({"cmd": [1]}, ExecRequest, "$.cmd[0]"),
        ({"cmd": ["a", None]}, ExecRequest, "$.cmd[1]"),
        ({"cmd": ["a"], "env": {"A": 1}}, ExecRequest, "$.env[...]"),
        ({"cmd": ["a"], "env": []}, ExecRequest, "$.env"),
        ({"cmd": ["a"], "timeout_ms": 0}, ExecRequest, "$.timeout_ms"),
        ({"cmd": ["a"], "on_disconnect": "x"}, ExecRequest, "$.on_disconnect"),
        ({"cmd": ["a"], "key": ""}, ExecRequest, "$.key"),
        ({"cmd": ["a"], "stdin": 1}, ExecRequest, "$.stdin"),
        ({"cmd": ["a"], "tty": 1}, ExecRequest, "$.tty"),
        ({"cmd": ["a"], "tty_size": [24]}, ExecRequest, "$.tty_size"),
        ({"cmd": ["a"], "tty_size": [24, 80, 1]}, ExecRequest, "$.tty_size"),
        ({"cmd": ["a"], "tty_size": [0, 80]}, ExecRequest, "$.tty_size[0]"),
        ({"cmd": ["a"], "tty_size": [24, 65_536]}, ExecRequest, "$.tty_size[1]"),
        ({"cmd": ["a"], "limits": {"nofile": "1"}}, ExecRequest, "$.limits[...]"),
        ({"cmd": ["a"], "user": ""}, ExecRequest, "$.user"),
        ({"cmd": ["a"], "orphans": "adopt"}, ExecRequest, "$.orphans"),
        ({"cmd": ["a"], "user": ""}, RunRequest, "$.user"),
        ({"cmd": []}, RunRequest, "$.cmd"),
        ({"cmd": ["a"], "output_limit": -1}, RunRequest, "$.output_limit"),
        ({"cmd": ["a"], "output_limit": (16 << 20) + 1}, RunRequest, "$.output_limit"),
        ({"cmd": ["a"], "keep": "middle"}, RunRequest, "$.keep"),
        ({"cmd": ["a"], "on_limit": "wait"}, RunRequest, "$.on_limit"),
        ({"cmd": ["a"], "drain_ms": -1}, RunRequest, "$.drain_ms"),
        ({"cmd": ["a"], "input": 1}, RunRequest, "$.input"),
        ({}, CancelParams, "$.id"),
        ({"id": None}, CancelParams, "$.id"),
        ({"id": 1.5}, CancelParams, "$.id"),
        ({"id": True}, CancelParams, "$.id"),
        ({"rows": 1, "columns": 1}, ResizeParams, "$.process_id"),
        ({"process_id": "p", "columns": 1}, ResizeParams, "$.rows"),
        ({"process_id": "p", "rows": 0, "columns": 1}, ResizeParams, "$.rows"),
        ({"process_id": "p", "rows": 1, "columns": 65_536}, ResizeParams, "$.columns"),
        ({}, KillParams, "$.process_id"),
        ({"process_id": "p", "grace_ms": -1}, KillParams, "$.grace_ms"),
        ({"process_id": "p", "grace_ms": 2**31}, KillParams, "$.grace_ms"),
        ({"process_id": "p", "grace_ms": True}, KillParams, "$.grace_ms"),
        ({"process_id": 1}, WaitParams, "$.process_id"),
        ({"process_id": "p"}, SignalParams, "$.signal"),
        ({"namespace": "../x"}, InitializeParams, "$.namespace"),
        ({"namespace": "x", "options": None}, InitializeParams, "$.options"),
    ],
)
def test_the_path_names_the_field(params: Any, shape: type[Struct], path: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        read(params, shape)
    assert raised.value.data["path"] == path
    assert path in str(raised.value)


def test_limits_of_a_control_group_are_apart() -> None:
    asked = {"nofile": 9, "memory_bytes": 2**20, "cpus": 0.5, "pids": 7}
    request = read({"cmd": ["a"], "limits": asked}, ExecRequest)
    check_exec(request)
    assert rlimits(request.limits) == [(7, 9)]
    assert group_limits(request.limits) == GroupLimits(2**20, 0.5, 7)
    assert group_limits({"cpus": 2}).names == ["cpus"]
    assert group_limits({"nofile": 9}).names == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("memory_bytes", value) for value in (0, 2**20 - 1, 2**21 + 0.5, 2**64)),
        *(("cpus", value) for value in (0, -1, 0.001)),
        *(("pids", value) for value in (0, 1.5, -7)),
        ("nofile", 1.5),
    ],
)
def test_what_is_no_such_limit_is_named(name: str, value: float) -> None:
    with pytest.raises(InvalidParams) as raised:
        check_exec(ExecRequest(cmd=["a"], limits={name: value}))
    assert raised.value.data["path"] == f"$.limits.{name}"


def test_limits_that_are_not_to_be_had_are_refused_with_the_reason() -> None:
    request = ExecRequest(cmd=["a"], limits={"nofile": 9, "pids": 7})
    check_offered(request, "spawn", ["limits", "pids"], [])
    for capabilities, why, path in (
        (["limits"], {"pids": "no controller"}, "$.limits.pids"),
        (["limits"], {}, "$.limits.pids"),
        (["pids"], {}, "$.limits"),
    ):
        with pytest.raises(InvalidParams, match=why.get("pids", "not offered")) as raised:
            check_offered(request, "spawn", capabilities, [], why)
        assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", path)


def test_a_worker_has_no_control_group() -> None:
    with pytest.raises(InvalidParams) as raised:
        check_exec(ExecRequest(cmd=["a"], template="t", limits={"pids": 7}))
    assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", "$.limits.pids")


def test_a_terminal_s_size_is_rows_and_columns() -> None:
    request = read({"cmd": ["a"], "tty": True, "tty_size": [1, 65_535]}, ExecRequest)
    assert (request.tty, request.tty_size) == (True, (1, 65_535))


@pytest.mark.parametrize(
    ("name", "value", "nearest"), [("nofiles", 1, "nofile"), ("qqq", 1, None), ("cpu", -1, None), ("as", 2**64, None)]
)
def test_a_limit_that_there_is_not_is_named(name: str, value: int, nearest: str | None) -> None:
    with pytest.raises(InvalidParams) as raised:
        check_exec(ExecRequest(cmd=["a"], limits={name: value}))
    assert raised.value.data["path"] == f"$.limits.{name}"
    assert raised.value.data.get("nearest") == nearest


def test_unknown_keys_of_params_are_ignored() -> None:
    assert read({"cmd": ["a"], "future": 1}, ExecRequest).cmd == ["a"]
    assert read({"anything": 1}, NoParams) == NoParams()
    assert read(None, NoParams) == NoParams()


@pytest.mark.parametrize(
    ("options", "path", "nearest"),
    [
        ({"max_proceses": 1}, "$.options.max_proceses", "max_processes"),
        ({"linger": 1}, "$.options.linger", "linger_ms"),
        ({"zzzzzzzz": 1}, "$.options.zzzzzzzz", None),
        ({"workspace": {"target": "/w", "sorce": "/x"}}, "$.options.workspace.sorce", "source"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest(options: dict[str, Any], path: str, nearest: str | None) -> None:
    with pytest.raises(InvalidParams) as raised:
        convert(options, Options, "$.options")
    assert raised.value.reason == "unknown_option"
    assert raised.value.data == {"path": path, "nearest": nearest}


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (ExecRequest(cmd=[""]), "$.cmd[0]"),
        (ExecRequest(cmd=["a\0"]), "$.cmd[0]"),
        (ExecRequest(cmd=["a", "b\0c"]), "$.cmd[1]"),
        (ExecRequest(cmd=["a"], env={"": "x"}), "$.env['']"),
        (ExecRequest(cmd=["a"], env={"A=B": "x"}), "$.env['A=B']"),
        (ExecRequest(cmd=["a"], env={"A": "\0"}), "$.env['A']"),
        (ExecRequest(cmd=["a"], working_dir=""), "$.working_dir"),
        (ExecRequest(cmd=["a"], working_dir="/x\0"), "$.working_dir"),
        (ExecRequest(cmd=["a"], user="x\0"), "$.user"),
        (ExecRequest(cmd=["a"], user=""), "$.user"),
    ],
)
def test_what_no_process_can_be_given(request_: ExecRequest, path: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        check_exec(request_)
    assert raised.value.data["path"] == path


LONGEST = limits.MAX_ARG_BYTES - 1


@pytest.mark.parametrize(
    "request_",
    [
        ExecRequest(cmd=["a", "x" * LONGEST]),
        ExecRequest(cmd=["a"], env={"A": "x" * (LONGEST - 2)}),
        ExecRequest(cmd=["a"], env={"é": "x" * (LONGEST - 3)}),
        ExecRequest(cmd=["a", "€" * (LONGEST // 3)]),
    ],
)
def test_the_longest_strings_pass(request_: ExecRequest) -> None:
    check_exec(request_)


@pytest.mark.parametrize(
    "request_",
    [
        ExecRequest(cmd=["a", "x" * (LONGEST + 1)]),
        ExecRequest(cmd=["a"], env={"A": "x" * (LONGEST - 1)}),
        ExecRequest(cmd=["a"], env={"é": "x" * (LONGEST - 2)}),
        ExecRequest(cmd=["a"], env={"A": "x" * limits.MIB}),
        ExecRequest(cmd=["a", "€" * (LONGEST // 3 + 1)]),
    ],
)
def test_one_byte_more_is_too_long(request_: ExecRequest) -> None:
    with pytest.raises(ExecFailed) as raised:
        check_exec(request_)
    assert raised.value.reason == "too_long"
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("more", [{"user": "0"}, {"tty": True}])
def test_what_a_forked_worker_cannot_have(more: dict[str, Any]) -> None:
    check_exec(ExecRequest(cmd=["a"], template="t"))
    with pytest.raises(InvalidParams) as raised:
        check_exec(ExecRequest(cmd=["a"], template="t", **more))
    assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", f"$.{next(iter(more))}")


@pytest.mark.parametrize(("known", "nearest"), [(["python", "ruby"], "python"), ([], None), (["ruby"], None)])
def test_an_unknown_template_is_named_with_the_nearest(known: list[str], nearest: str | None) -> None:
    request = ExecRequest(cmd=["a"], template="pythn")
    check_offered(request, "spawn", ["template"], ["pythn"])
    with pytest.raises(InvalidParams) as raised:
        check_offered(request, "spawn", ["template"], known)
    assert raised.value.data == {"path": "$.template", "nearest": nearest}


@pytest.mark.parametrize("value", [15, "TERM", "SIGTERM", "term", "sigterm"])
def test_signals_by_number_and_name(value: int | str) -> None:
    assert signal_number(value) == signal.SIGTERM


@pytest.mark.parametrize("value", [0, -1, 65, "", "SIG", "NOPE", "15", "SIG_DFL", "SIGSIGTERM"])
def test_no_signals(value: int | str) -> None:
    with pytest.raises(InvalidParams):
        signal_number(value)


FIELDS = dict.fromkeys(("cmd", "env", "working_dir", "stdin", "limits", "key", "on_disconnect"), JSON)


@given(JSON | st.fixed_dictionaries({}, optional=FIELDS))
def test_any_params_convert_or_are_explained(params: Any) -> None:
    try:
        check_exec(read(params, ExecRequest))
    except InvalidParams as error:
        assert error.data["path"].startswith("$")  # noqa: PT017 - an error is one of two right outcomes


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"working_dir": ""}, "$.working_dir"),
        ({"user": ""}, "$.user"),
        ({"cmd": ["a\0"]}, "$.cmd[0]"),
        ({"input": "a", "input_base64": "YQ=="}, "$.input_base64"),
        ({"input": "", "input_base64": ""}, "$.input_base64"),
        ({"input_base64": "YQ"}, "$.input_base64"),
        ({"input_base64": "YQ==\n"}, "$.input_base64"),
        ({"input_base64": "Y Q=="}, "$.input_base64"),
        ({"input_base64": "é==="}, "$.input_base64"),
        ({"input": "\udc80"}, "$.input"),
        ({"template": "t", "user": "root"}, "$.user"),
    ],
)
def test_what_no_run_can_be_given(more: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidParams) as raised:
        check_run(RunRequest(**{"cmd": ["a"], **more}))
    assert raised.value.data["path"] == path


def test_the_input_of_a_run() -> None:
    assert check_run(RunRequest(cmd=["a"])) == b""
    assert check_run(RunRequest(cmd=["a"], input="é")) == "é".encode()
    assert check_run(RunRequest(cmd=["a"], input_base64="/w==")) == b"\xff"


@pytest.mark.parametrize(
    ("working_dir", "default", "wanted"),
    [
        (None, None, None),
        (None, "/work", "/work"),
        ("/a/../b", "/work", "/a/../b"),
        (".", "/work", "/work"),
        ("sub", "/work", "/work/sub"),
        ("./sub//x/.", "/work", "/work/sub/x"),
        ("../x", None, "/image/../x"),
    ],
)
def test_directories(working_dir: str | None, default: str | None, wanted: str | None) -> None:
    assert directory_of(working_dir, default, default or "/image") == wanted


def test_a_fingerprint_is_of_everything_but_the_order_of_names() -> None:
    one = ExecRequest(cmd=["a"], env={"A": "1", "B": "\udc80"})
    assert fingerprint(one) == fingerprint(ExecRequest(cmd=["a"], env={"B": "\udc80", "A": "1"}))
    others: list[ExecRequest | RunRequest] = [
        ExecRequest(cmd=["a"]),
        ExecRequest(cmd=["a"], env=one.env, stdin=False),
        RunRequest(cmd=["a"], env=one.env),
    ]
    assert len({fingerprint(request) for request in [one, *others]}) == 4
    traced = ExecRequest(cmd=["a"], env=one.env, traceparent=PARENT, tracestate="a=b")
    assert fingerprint(traced) == fingerprint(one), "who tries again is in another span"


# --- Traces ---

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@st.composite
def traceparents(draw: st.DrawFn) -> str:
    """Well-formed ones, by the words of the specification."""
    digits = [draw(st.text("0123456789abcdef", min_size=size, max_size=size)) for size in (2, 32, 16, 2)]
    version, trace, span, flags = digits
    return "-".join(
        [
            version if version != "ff" else "00",
            trace if int(trace, 16) else "1" * 32,
            span if int(span, 16) else "1" * 16,
            flags,
        ]
    )


@given(traceparents())
def test_a_well_formed_traceparent_is_taken_as_it_is(parent: str) -> None:
    assert trace_of(ExecRequest(cmd=["a"], traceparent=parent)) == (parent, "")


@given(traceparents(), st.data())
def test_one_character_more_less_or_other_is_said(parent: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(parent)))
    other = data.draw(st.text(st.characters(blacklist_characters="0123456789abcdef-"), min_size=1, max_size=1))
    for text in (parent[:at] + other + parent[at:], parent[:at] + other + parent[at + 1 :], parent + "0", parent[:-1]):
        with pytest.raises(InvalidParams, match="2, 32, 16 and 2 lower-case hexadecimal digits") as raised:
            trace_of(RunRequest(cmd=["a"], traceparent=text))
        assert raised.value.data["path"] == "$.traceparent"
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PARENT.upper(),
        PARENT + "\n",
        " " + PARENT,
        PARENT + "-00",
        "ff" + PARENT[2:],
        PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        PARENT.replace("b7ad6b7169203331", "0" * 16),
        PARENT.replace("-", "_"),
        "\u0660" + PARENT[1:],
    ],
)
def test_what_is_no_traceparent(text: str) -> None:
    with pytest.raises(InvalidParams, match=r"^\$\.traceparent"):
        trace_of(EnvironmentRequest(traceparent=text))


@pytest.mark.parametrize(
    "state", ["a=b", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "a=1 ,\tb=2", "fw529a3039@dt=FfAA 1;~", "0/*_-=!"]
)
def test_a_list_of_names_and_values_is_a_tracestate(state: str) -> None:
    assert trace_of(ExecRequest(cmd=["a"], traceparent=PARENT, tracestate=state)) == (PARENT, state)


@pytest.mark.parametrize(
    "state", ["", "a", "A=b", "a=", "a=b,", "a=b\n", "a=\x00", "a=b=c", "=b", "a=é", "a=" + "b" * 511]
)
def test_anything_else_is_none(state: str) -> None:
    with pytest.raises(InvalidParams, match=r"^\$\.tracestate"):
        trace_of(ExecRequest(cmd=["a"], traceparent=PARENT, tracestate=state))


def test_a_tracestate_needs_its_traceparent_and_is_short() -> None:
    with pytest.raises(InvalidParams, match="with a traceparent"):
        trace_of(ExecRequest(cmd=["a"], tracestate="a=b"))
    longest = ",".join(f"{number:02}=" + "v" * 47 for number in range(10))
    assert re.fullmatch(r".{509}", longest)
    assert trace_of(ExecRequest(cmd=["a"], traceparent=PARENT, tracestate=longest + "vvv"))
    with pytest.raises(InvalidParams, match="512 bytes"):
        trace_of(ExecRequest(cmd=["a"], traceparent=PARENT, tracestate=longest + "vvvv"))
