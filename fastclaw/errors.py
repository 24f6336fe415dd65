"""The error tree: what went wrong, whose fault it is, and whether trying again helps.

    FastclawError
    ├── ParseError          -32700  not JSON
    ├── InvalidRequest      -32600  JSON, but no JSON-RPC request; or a line over the limit
    ├── MethodNotFound      -32601
    ├── InvalidParams       -32602  wrong shape; `path` names the field
    ├── InternalError       -32603  a bug of ours or of the served runtime
    ├── RequestCancelled    -32800  the caller has taken the request back
    └── RuntimeSdkError             the five words of anyclaw-sdk-runtime 0.1.0
        ├── ExecFailed      -32000  "exec failed: …"
        ├── StartFailed     -32001  "start failed: …"
        ├── InvalidState    -32002  "invalid state: …"
        ├── ProtocolError   -32003  "protocol error: …"
        └── IoError         -32004  "io error: …"

A runtime raises one of these; the harness is the one place that turns it into a wire error. `reason` is the
stable word a program may branch on; the message is for people.
"""

from typing import Any, ClassVar, Literal, get_args

Fault = Literal["caller", "engine", "runtime"]

REASONS: dict[str, tuple[Fault, bool]] = {
    # reason: (whose fault it is, whether the same call may succeed later)
    "parse_error": ("caller", False),
    "invalid_request": ("caller", False),
    "line_too_long": ("caller", False),
    "method_not_found": ("caller", False),
    "invalid_params": ("caller", False),
    "unknown_option": ("caller", False),
    "unsupported": ("caller", False),
    "internal": ("runtime", False),
    "cancelled": ("caller", False),
    "not_found": ("caller", False),
    "permission_denied": ("caller", False),
    "not_executable": ("caller", False),
    "file_busy": ("caller", True),
    "bad_working_dir": ("caller", False),
    "unknown_user": ("caller", False),
    "too_long": ("caller", False),
    "overloaded": ("runtime", True),
    "engine_timeout": ("engine", True),
    "engine_error": ("engine", False),
    "engine_unavailable": ("engine", True),
    "container_gone": ("engine", True),
    "template_failed": ("caller", False),
    "template_gone": ("caller", True),
    "image_not_found": ("caller", False),
    "build_failed": ("caller", False),
    "network_failed": ("engine", False),
    "bad_mount": ("caller", False),
    "bad_log": ("caller", False),
    "not_initialized": ("caller", False),
    "already_initialized": ("caller", False),
    "shutting_down": ("caller", False),
    "unknown_process": ("caller", False),
    "unknown_environment": ("caller", False),
    "environment_exists": ("caller", False),
    "environment_busy": ("caller", True),
    "environment_stopped": ("caller", False),
    "no_tty": ("caller", False),
    "protocol_error": ("engine", False),
    "io_error": ("runtime", False),
    # Of the calls for files:
    "is_directory": ("caller", False),
    "not_directory": ("caller", False),
    "exists": ("caller", False),
    "not_empty": ("caller", False),
    "no_space": ("caller", False),
    "too_large": ("caller", False),
    "read_only": ("caller", False),
    "name_too_long": ("caller", False),
    "too_many_links": ("caller", False),
    "other_file_system": ("caller", False),
    "busy": ("caller", False),
    "not_regular": ("caller", False),
    "bad_path": ("caller", False),
    "bad_archive": ("caller", False),
    "outside": ("caller", False),
    "wrong_size": ("caller", False),
    # Of the client's own making:
    "no_answer": ("runtime", True),
    "runtime_exited": ("runtime", False),
}
"""Every reason that can be on the wire. A reason that is not here cannot be raised."""


class FastclawError(Exception):
    """Root of all errors of this package.

    Parameters:
        message: one line for people that says what to do next where that is known.
        reason: a key of `REASONS`; each class has a default.
        data: further fields for `error.data`, JSON values only.
    """

    code: ClassVar[int]
    kind: ClassVar[str]
    prefix: ClassVar[str] = ""
    default_reason: ClassVar[str]

    def __init__(self, message: str, reason: str | None = None, **data: Any) -> None:
        super().__init__(self.prefix + message)
        self.reason = reason or self.default_reason
        self.fault, self.retryable = REASONS[self.reason]
        self.data = data

    def to_wire(self) -> dict[str, Any]:
        """The `error` member of a JSON-RPC answer."""
        data = {
            "kind": self.kind,
            "reason": self.reason,
            "fault": self.fault,
            "retryable": self.retryable,
            **self.data,
        }
        return {"code": self.code, "message": str(self), "data": data}

    @staticmethod
    def from_wire(error: Any) -> "FastclawError":
        """The exception for an `error` member. Nothing in it is trusted to have the right shape.

        A code that is not ours becomes a `ProtocolError` with `data["code"]`.
        """
        fields = error if isinstance(error, dict) else {"message": f"an error that is no object: {error!r}"}
        code, told = fields.get("code"), fields.get("data")
        data = dict(told) if isinstance(told, dict) else {} if told is None else {"data": told}
        known = BY_CODE.get(code) if isinstance(code, int) else None
        if known is None:
            data["code"] = code
        made = (known or ProtocolError)("")
        made.args = (str(fields.get("message", "no message")),)
        made._adopt(data)
        return made

    def _adopt(self, data: dict[str, Any]) -> None:
        """Take over the `data` of a wire error; words that are missing or strange keep this class's own."""
        data.pop("kind", None)
        self.reason = str(data.pop("reason", self.reason))
        fault, retryable = REASONS.get(self.reason, ("runtime", False))
        told = data.pop("fault", fault)
        self.fault = told if told in get_args(Fault) else fault
        self.retryable = data.pop("retryable", retryable) is True
        self.data = data


class ParseError(FastclawError):
    """The line is not JSON."""

    code, kind, default_reason = -32700, "parse_error", "parse_error"


class InvalidRequest(FastclawError):
    """The line is JSON but no request, or it is longer than the protocol allows."""

    code, kind, default_reason = -32600, "invalid_request", "invalid_request"


class MethodNotFound(FastclawError):
    """The served runtime has no such method."""

    code, kind, default_reason = -32601, "method_not_found", "method_not_found"


class InvalidParams(FastclawError):
    """The params have the wrong shape. `data.path` names the field as in `$.cmd[0]`."""

    code, kind, default_reason = -32602, "invalid_params", "invalid_params"


class InternalError(FastclawError):
    """A bug. The traceback goes to the log, never to the wire."""

    code, kind, default_reason = -32603, "internal", "internal"


class RequestCancelled(FastclawError):
    """The caller took the request back with `cancel`; the code is that of the language server protocol."""

    code, kind, default_reason = -32800, "cancelled", "cancelled"


class RuntimeSdkError(FastclawError):
    """What a runtime may report: the five variants of the crate's error enum."""


class ExecFailed(RuntimeSdkError):
    """The command did not start."""

    code, kind, prefix, default_reason = -32000, "exec_failed", "exec failed: ", "engine_error"


class StartFailed(RuntimeSdkError):
    """The environment could not be brought up."""

    code, kind, prefix, default_reason = -32001, "start_failed", "start failed: ", "engine_error"


class InvalidState(RuntimeSdkError):
    """The call does not fit the runtime's or the process's state."""

    code, kind, prefix, default_reason = -32002, "invalid_state", "invalid state: ", "not_initialized"


class ProtocolError(RuntimeSdkError):
    """The other side (an engine, a served runtime) broke its protocol."""

    code, kind, prefix, default_reason = -32003, "protocol_error", "protocol error: ", "protocol_error"


class IoError(RuntimeSdkError):
    """The operating system refused something the runtime needs."""

    code, kind, prefix, default_reason = -32004, "io_error", "io error: ", "io_error"


BY_CODE: dict[int, type[FastclawError]] = {
    error.code: error
    for error in (
        ParseError,
        InvalidRequest,
        MethodNotFound,
        InvalidParams,
        InternalError,
        RequestCancelled,
        ExecFailed,
        StartFailed,
        InvalidState,
        ProtocolError,
        IoError,
    )
}
"""For clients: the class that a wire code stands for."""
