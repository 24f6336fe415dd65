"""The schema of the wire: that the pages of the contract say the same, and that it fits what goes over a real wire."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import structs
from podman import PodmanClient

from fastclaw.cli.schema import ID, document, required, summary
from fastclaw.files import FileRequest, FileStat
from fastclaw.options import Options, PoolKind
from fastclaw.runtime import ExecResult, ExitRecord, RunResult
from fastclaw.server.methods import METHODS
from fastclaw.wire import SHAPES, Initialized
from tests.served import Served, line, serve_command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.programs import Call
    from tests.engine_fixtures import EngineService

DOCS = Path(__file__).parents[2] / "docs"
CONTRACT, FILES = (DOCS / "contract.md").read_text(), (DOCS / "files.md").read_text()

Fields = dict[str, Any]
"""Names of fields, with a `?` where one may be left out; below each those of what is in it, where the text says it."""


# --- The pages of the contract ---


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The other cells of a table by what is in backticks in its first ones."""
    table = page.split(f"| {heading} |", 1)[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    return {name: more for first, *more in cells for name in re.findall(r"`(\w+)`", first)}


def read(text: str) -> Fields:
    """The fields of `{a, b?, c: [{d}]}`: of the first braces there are."""
    return _fields(re.findall(r"[\w…]+\??|[{}:,\[\]]", text[text.index("{") :]))


def _fields(tokens: list[str]) -> Fields:
    """Those of the braces that begin here: words behind a comma or a brace. Takes their tokens away."""
    found: Fields = {}
    name, before = "", tokens.pop(0)
    while (token := tokens.pop(0)) != "}":
        if token == "{":
            tokens.insert(0, token)
            found[name], token = _fields(tokens), "}"
        elif before in "{,":
            name = token
            found[name] = {}
        before = token
    return found


def of_struct(struct: type[msgspec.Struct]) -> Fields:
    """The same of what is read or written."""
    needed = required(struct)
    return {
        field.name if field.name in needed else f"{field.name}?": _below(field.type) for field in structs.fields(struct)
    }


def _below(kind: Any) -> Fields:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return of_struct(kind)
    return next((below for part in typing.get_args(kind) if (below := _below(part))), {})


METHOD_ROWS, FILE_ROWS = rows(CONTRACT, "method"), rows(FILES, "method")
STREAM = of_struct(ExecResult)


def test_all_methods_are_in_the_table_of_the_contract_and_no_others() -> None:
    assert set(METHOD_ROWS) == set(SHAPES) == set(METHODS)
    assert set(FILE_ROWS) == {name for name, (params, _) in METHOD_ROWS.items() if "files.md" in params}


@pytest.mark.parametrize("method", [name for name in SHAPES if name not in FILE_ROWS])
def test_the_contract_names_each_param_and_which_may_be_left_out(method: str) -> None:
    text = METHOD_ROWS[method][0]
    said = {} if text == "none" else read(text)
    if method == "pool_set":
        assert set(said["pool"]) - {"…"} == required(PoolKind)
        said["pool"] = {}
    assert said == of_struct(SHAPES[method].params)


@pytest.mark.parametrize("method", [name for name in SHAPES if name not in FILE_ROWS])
def test_the_contract_names_each_field_of_an_answer_and_which_may_be_left_out(method: str) -> None:
    text = METHOD_ROWS[method][1]
    said = read(text) if "{" in text else {}
    if text.startswith("the exit record"):
        said = of_struct(ExitRecord) | said
    elif text.startswith("as `"):
        said = read(METHOD_ROWS[text.split("`")[1]][1])
    last = SHAPES[method].results[-1]
    assert said == of_struct(last)
    if method == "initialize":
        main, start = SHAPES[method].results[0], SHAPES["environment_start"].results[0]
        assert text.endswith("and of `main` what `environment_start` answers")
        assert of_struct(main) == of_struct(start) | of_struct(Initialized)


@pytest.mark.parametrize("method", FILE_ROWS)
def test_the_page_about_files_names_the_same_of_theirs(method: str) -> None:
    params, result = FILE_ROWS[method]
    assert of_struct(FileRequest) | read(params) == of_struct(SHAPES[method].params)
    said = read(result)
    if "entries" in said:
        assert said["entries"].pop("…as") == {}
        said["entries"] |= of_struct(FileStat)
    assert said == of_struct(SHAPES[method].results[0])
    assert result.endswith(", or a stream") is (SHAPES[method].results[1:] == (ExecResult,))


def test_the_page_says_what_is_always_in_an_exit_record_and_what_may_be() -> None:
    section = CONTRACT.split("## The exit record")[1].split("\n## ")[0]
    record = of_struct(ExitRecord)
    assert set(read(section)) == {name for name in record if not name.endswith("?")}
    assert [name for name in record if name.endswith("?") and f"`{name[:-1]}" not in section] == []
    assert set(record) <= set(of_struct(RunResult))


# --- A real wire ---


SCHEMA = document()


def validator(part: str) -> Draft202012Validator:
    """Of one part of the document, by its name."""
    return Draft202012Validator({"$schema": SCHEMA["$schema"], "$ref": f"{ID}#{part}", "$defs": {"all": SCHEMA}})


def test_it_is_a_schema_with_a_name_for_each_part(call: Call) -> None:
    printed = json.loads(call("schema", "--json").stdout)
    assert printed == json.loads(json.dumps(SCHEMA))
    Draft202012Validator.check_schema(printed)
    assert (printed["$schema"], printed["$id"]) == ("https://json-schema.org/draft/2020-12/schema", ID)
    assert all(part["$anchor"] == name for name, part in printed["$defs"].items())
    assert r"\Z" not in json.dumps(printed)


def test_people_read_the_same(call: Call) -> None:
    lines = call("schema").stdout.decode().splitlines()
    assert lines == summary().splitlines()
    assert {text.split()[0] for text in lines[: lines.index("")]} == set(SHAPES)
    named = {text.split(":")[0].removeprefix("options.") for text in lines[lines.index("") + 1 :]}
    assert named >= set(Options.__struct_fields__)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(serve_command("local"), tmp_path / "log") as child:
        yield child


class Checked:
    """Calls of a served runtime, each request and each answer held against the schema."""

    def __init__(self, child: Served) -> None:
        self._child = child
        self.methods: set[str] = set()
        self._requests = Draft202012Validator(SCHEMA)

    def __call__(self, method: str, **params: Any) -> Any:
        self._requests.validate(json.loads(line(method, "call", **params)))
        answer = self._child.call(method, **params)
        validator("answer").validate(answer)
        self.methods.add(method)
        result = answer["result"]
        validator(f"{method}.result").validate(result)
        known = {name for shape in SHAPES[method].results for name in shape.__struct_fields__}
        assert set(result) <= known
        return result


def test_all_that_goes_over_a_wire_fits_it(served: Served, tmp_path: Path) -> None:
    call = Checked(served)
    call("health")
    call("initialize", namespace="schema", options={"max_processes": 100, "keep_exited": 10})
    call("run", cmd=["sh", "-c", "printf '\\377'; exit 3"], output_limit=10, on_limit="kill", keep="head")
    process = call("exec", cmd=["cat"], env={"A": "b"}, limits={"nofile": 64}, tty=True, tty_size=[10, 20])
    name = {"process_id": process["process_id"]}
    call("resize", **name, rows=5, columns=5)
    call("wait", **name, timeout_ms=1)
    call("list", limit=1)
    call("signal", **name, signal="HUP")
    call("kill", **name, grace_ms=0)
    call("wait", **name)
    call("cancel", id=1)
    where = str(tmp_path / "d")
    call("make_dir", path=where)
    call("write_file", path=f"{where}/f", text="x", mode=0o600)
    call("read_file", path=f"{where}/f")
    call("read_file", path=f"{where}/f", stream=True)
    call("stat", path=f"{where}/f")
    call("list_dir", path=where)
    call("move", path=f"{where}/f", to=f"{where}/g")
    archive = call("read_tar", path=where)
    call("write_tar", path=where, base64=archive["base64"])
    call("remove", path=where, recursive=True)
    call("environment_start", environment="e", options={"env": {"A": "b"}})
    call("environment_list")
    call("environment_reset", environment="e")
    call("environment_stop", environment="e")
    call("pool_set", pool=[{"size": 0}])
    call("health")
    call("shutdown")
    assert call.methods == set(SHAPES) - {"stop", *IMAGES}, "which is another name for shutdown, and what has no engine"


IMAGES = {"image_pull", "image_build", "image_load"}


def test_images_fit_it_too(engine_service: EngineService, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text(f"FROM {engine_service.image}\nUSER 5\n")
    with Served(serve_command("podman"), tmp_path / "log") as child:
        call = Checked(child)
        call("initialize", namespace="schema", options={"url": engine_service.url, "environment": False})
        call("image_pull", image=engine_service.image, pull="missing", progress=False)
        built = call("image_build", directory=str(tmp_path), args={"A": "b"}, network="none", no_cache=True)
        with PodmanClient(base_url=engine_service.url) as client:
            response = client.api.get(f"/images/{built['id']}/get", params={"format": "docker-archive"})
            (tmp_path / "archive").write_bytes(response.content)
        call("image_load", archive=str(tmp_path / "archive"))
        assert call.methods == {"initialize", *IMAGES}


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("exec", {}),
    ("exec", {"cmd": []}),
    ("exec", {"cmd": ["x"], "tty_size": [0, 80]}),
    ("run", {"cmd": ["x"], "keep": "middle"}),
    ("run", {"cmd": ["x"], "output_limit": 2**40}),
    ("initialize", {"namespace": "a b"}),
    ("initialize", {"namespace": "n", "options": {"imagee": "x"}}),
    ("initialize", {"namespace": "n", "options": {"network": {"mode": "wide"}}}),
    ("initialize", {"namespace": "n", "options": {"pool": [{"image": "x"}]}}),
    ("wait", {"process_id": 1}),
    ("list_dir", {"path": "", "limit": 10}),
    ("nonsense", {}),
]


def test_what_a_runtime_refuses_by_its_shape_does_not_fit(served: Served) -> None:
    requests = Draft202012Validator(SCHEMA)
    for method, params in WRONG:
        assert not requests.is_valid(json.loads(line(method, 1, **params))), (method, params)
        error = served.call(method, **params)["error"]
        validator("error").validate(error)
        assert error["code"] in (-32601, -32602)


def test_an_error_without_its_words_does_not_fit() -> None:
    data = {"kind": "exec_failed", "reason": "not_found", "fault": "caller", "retryable": False}
    error = {"code": -32000, "message": "exec failed: no", "data": data}
    assert validator("error").is_valid(error)
    for broken in ({**data, "reason": "nonsense"}, {"kind": "exec_failed"}):
        assert not validator("error").is_valid({**error, "data": broken})
