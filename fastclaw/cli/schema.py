"""`fastclaw schema`: the wire and the options as one JSON Schema, made of the structs that read and write them."""

import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import click
import msgspec
from msgspec import Struct, UnsetType, structs

from fastclaw import __version__, limits
from fastclaw.errors import BY_CODE, REASONS
from fastclaw.options import HostOptions, Options, PoolKind
from fastclaw.runtime import ExitRecord
from fastclaw.wire import SHAPES, Shape

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ID = "https://github.com/fastclaw/fastclaw/schema/wire"
"""Of the document. A part of it is `ID#exec.params`, `ID#exec.result`, `ID#error`, `ID#HostOptions` and so on."""

Schema = dict[str, Any]

NARROWED = {
    ("InitializeParams", "options"): {"$ref": "#/$defs/HostOptions"},
    ("EnvironmentRequest", "options"): {"$ref": "#/$defs/Options"},
    ("PoolParams", "pool"): {"items": {"$ref": "#/$defs/PoolKind"}},
    ("HostOptions", "pool"): {"items": {"$ref": "#/$defs/PoolKind"}},
}
"""What any object may be for dispatch, and is read by a runtime of ours."""

_DESCRIBED = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", re.MULTILINE)
"""An entry of a docstring's "Parameters:"."""
_NONE = re.compile(r"\bNone\b")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON Schema (2020-12) of all of it.")
def schema(as_json: bool) -> None:
    """Show the methods, with params and results, and the options."""
    click.echo(msgspec.json.format(msgspec.json.encode(document())).decode() if as_json else summary())


def summary() -> str:
    """For people, as docs/contract.md writes it: a line for each method, then one for each option."""
    methods = [
        f"{name} {notation(shape.params)} -> {' or '.join(map(notation, shape.results))}"
        for name, shape in SHAPES.items()
    ]
    said = descriptions(HostOptions)
    options = [f"options.{name}: {said.get(name, '')}".rstrip(": ") for name in HostOptions.__struct_fields__]
    return "\n".join([*methods, "", *options])


def notation(struct: type[Struct]) -> str:
    """Its fields in braces; a `?` is behind those that may be left out."""
    needed = required(struct)
    return "{" + ", ".join(name if name in needed else f"{name}?" for name in struct.__struct_fields__) + "}"


def document() -> Schema:
    """The whole. Itself it is the schema of a request; `$defs` has everything else."""
    given = [shape.params for shape in SHAPES.values()]
    answered = [result for shape in SHAPES.values() for result in shape.results]
    shown: list[type[Struct]] = [*given, *answered, ExitRecord, Options, HostOptions, PoolKind]
    _, parts = msgspec.json.schema_components(shown, ref_template="#/$defs/{name}")
    for struct in within(shown):
        _complete(parts[struct.__name__], struct)
    defs = {**parts, "error": _error(), "answer": _answer()}
    for name, shape in SHAPES.items():
        defs[f"{name}.params"] = _ref(shape.params)
        defs[f"{name}.result"] = {"anyOf": [_ref(result) for result in shape.results]}
    return {
        "$schema": DIALECT,
        "$id": ID,
        "title": f"A request to fastclaw {__version__}, one JSON object on a line",
        "type": "object",
        "properties": {"jsonrpc": {"const": "2.0"}, "id": _request_id()},
        "required": ["jsonrpc", "method"],
        "oneOf": [_request(name, shape) for name, shape in SHAPES.items()],
        "$defs": {name: {"$anchor": name, **part} for name, part in defs.items()},
    }


def _ref(struct: type[Struct]) -> Schema:
    return {"$ref": f"#/$defs/{struct.__name__}"}


def _request_id() -> Schema:
    number = {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}
    return {"anyOf": [number, {"type": "string", "maxLength": limits.MAX_ID_CHARS}]}


def _request(name: str, shape: Shape) -> Schema:
    """Params may be null or left out where nothing is required of them."""
    params = {"$ref": f"#/$defs/{name}.params"}
    if required(shape.params):
        return {"properties": {"method": {"const": name}, "params": params}, "required": ["params"]}
    return {"properties": {"method": {"const": name}, "params": {"anyOf": [params, {"type": "null"}]}}}


def _answer() -> Schema:
    properties = {
        "jsonrpc": {"const": "2.0"},
        "id": {"anyOf": [_request_id(), {"type": "null"}]},
        "result": {"description": "METHOD.result of the request's method"},
        "error": {"$ref": "#/$defs/error"},
    }
    either = [{"required": ["result"]}, {"required": ["error"]}]
    return {"type": "object", "properties": properties, "required": ["jsonrpc", "id"], "oneOf": either}


def _error() -> Schema:
    data = {
        "kind": {"enum": [error.kind for error in BY_CODE.values()]},
        "reason": {"enum": list(REASONS), "description": "what a program may branch on"},
        "fault": {"enum": ["caller", "engine", "runtime"]},
        "retryable": {"type": "boolean", "description": "whether the same call may succeed later"},
    }
    told = {"path": {"type": "string"}, "nearest": {"type": ["string", "null"]}}
    properties = {
        "code": {"enum": list(BY_CODE)},
        "message": {"type": "string", "description": "one line for people"},
        "data": {"type": "object", "properties": data | told, "required": list(data)},
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


# --- What msgspec does not say ---


def _complete(part: Schema, struct: type[Struct]) -> None:
    """Which fields an answer always has, what each is for, and patterns as all dialects of them read them."""
    part["description"] = inspect.cleandoc(struct.__doc__ or "").partition("\n\nParameters:")[0].replace("\n", " ")
    part["required"] = [name for name in struct.__struct_fields__ if name in required(struct)]
    said = descriptions(struct)
    for name, field in part["properties"].items():
        field.update(NARROWED.get((struct.__name__, name), {}))
        if name in said:
            field["description"] = said[name]
        if name in part["required"]:
            field.pop("default", None)
        for pattern in _with_pattern(field):
            pattern["pattern"] = pattern["pattern"].replace(r"\Z", "$")


def required(struct: type[Struct]) -> set[str]:
    """Fields that are always there: of params those without a default, of an answer all that are never left out."""
    is_answer = not struct.__struct_config__.omit_defaults and struct in _ANSWERED
    return {
        field.name
        for field in structs.fields(struct)
        if field.required or (is_answer and UnsetType not in typing.get_args(field.type))
    }


def descriptions(struct: type[Struct]) -> dict[str, str]:
    """What the docstrings of a struct and its bases say of its fields."""
    found: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        _, _, listed = inspect.cleandoc(base.__doc__ or "").partition("\nParameters:\n")
        for names, words in _DESCRIBED.findall(listed):
            found |= dict.fromkeys(names.split(", "), _NONE.sub("null", " ".join(words.split())))
    return found


def within(shown: Iterable[type[Struct]]) -> set[type[Struct]]:
    """These structs, and those in their fields."""
    found: set[type[Struct]] = set()
    waiting: list[Any] = list(shown)
    while waiting:
        one = waiting.pop()
        if isinstance(one, type) and issubclass(one, Struct):
            if one not in found:
                found.add(one)
                waiting += [field.type for field in structs.fields(one)]
        else:
            waiting += typing.get_args(one)
    return found


_ANSWERED = within(result for shape in SHAPES.values() for result in shape.results)


def _with_pattern(part: Any) -> Iterator[Schema]:
    """All schemas in one that have a pattern."""
    if isinstance(part, dict):
        if "pattern" in part:
            yield part
        for inner in part.values():
            yield from _with_pattern(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _with_pattern(inner)
