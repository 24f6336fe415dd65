"""A template: a Python program that has imported what its workers need, and is forked for each of them.

Runs in the container's own Python (3.8 or later, Linux), so it needs nothing but the standard library and this one
file. As a command it makes workers of Python command lines:

    python3 -m fastclaw.template -i json -i ssl       then  exec ["python", "worker.py", "--fast"]

and a program of one's own calls `serve(main)` once it has imported what it needs. A worker has the request's stdio,
environment, directory, limits and arguments, none of the template's descriptors, and ends as an interpreter ends.

A template must have no threads: fork(2) copies one, and locks that another holds stay locked in the child for ever.
It should hold no open files either: a worker has them closed, below objects that do not know. What else a worker has in
common with its template: the hash seed, objects that exist already, and memory until it is written to.

The frames are in spawner/frames.py. It forks twice, so that a worker becomes the child of fastclaw's reaper
(spawner/c/reaper.c), which reaps it and tells of its end; a worker waits for its adoption before it does anything.
"""

from __future__ import annotations

import array
import atexit
import builtins
import contextlib
import ctypes
import errno
import gc
import importlib
import importlib.machinery
import io
import json
import os
import resource
import runpy
import signal
import socket
import sys
import threading
import types
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    Main = Callable[[list[str]], int | None]

FD_VARIABLE = "FASTCLAW_TEMPLATE_FD"
PATH_VARIABLE = "PYTHONPATH"
FRAME_BYTES = 65_536
MAX_FDS = 5

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))

_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class Request(NamedTuple):
    """A request for a worker. `fds`: go, stdin where it has one, stdout, stderr. `cwd`: None is the template's own."""

    id: int
    argv: list[str]
    env: dict[str, str]
    cwd: str | None
    limits: list[tuple[int, int]]
    fds: list[int]


class _Failed(Exception):
    """A step before the start did not work."""

    def __init__(self, step: str, number: int) -> None:
        self.step, self.errno = step, number


def serve(main: Main) -> NoReturn:
    """Fork a worker for every request; `main` is called in each with its arguments, and its result is the exit code.

    Does not return: neither in the template, which ends with fastclaw, nor in a worker.
    """
    control = _open_control()
    if threads := _other_threads():
        raise SystemExit(f"fastclaw.template: {threads} threads besides the main one; a template must have none")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # what is shared stays shared: no collection touches it (gc.freeze)
    control.send(b'{"ready": true}')
    request = _serve_requests(control)
    _become_worker(request)
    _end(_outcome(main, request.argv))


def _open_control() -> socket.socket:
    number = os.environ.pop(FD_VARIABLE, "")
    if not number.isdecimal():
        raise SystemExit(f"fastclaw.template: {FD_VARIABLE} is not set; name this program in options.templates")
    os.set_inheritable(int(number), False)
    return socket.socket(fileno=int(number))


def _other_threads() -> int:
    """The number of other threads, Python's and others."""
    return len(os.listdir("/proc/self/task")) - 1


# --- the template ---


def _serve_requests(control: socket.socket) -> Request:
    """Serve requests; returns in workers only."""
    while True:
        request = _receive(control)
        answer = _fork(control, request)
        if answer is None:
            return request
        _close(request.fds)
        control.send(answer)


def _receive(control: socket.socket) -> Request:
    frame, fds = b"", array.array("i")
    with contextlib.suppress(ConnectionResetError):
        frame, extras, _, _ = control.recvmsg(FRAME_BYTES, socket.CMSG_SPACE(MAX_FDS * fds.itemsize), _CLOEXEC)
        for level, kind, data in extras:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not frame:
        sys.exit(0)  # fastclaw is gone, or has closed the socket
    return _read(frame, list(fds))


_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000)


def _read(frame: bytes, fds: list[int]) -> Request:
    told = json.loads(frame)
    if "spilled" in told:
        file = fds.pop()
        told = json.loads(os.pread(file, told["spilled"], 0))
        os.close(file)
    return Request(told["id"], told["argv"], told["env"], told["cwd"], told["limits"], fds)


def _fork(control: socket.socket, request: Request) -> bytes | None:
    """The answer to fastclaw; None in the worker, once it may run."""
    if _other_threads():
        return _failed(request, _Failed("threads", errno.EDEADLK))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    ours, report = os.pipe()
    try:
        middle = _fork_without_warning()
    except OSError as error:
        _close([ours, report])
        return _failed(request, _Failed("fork", error.errno or errno.EAGAIN))
    if middle == 0:
        _second_fork(control, request, report)
        return None
    os.close(report)
    answer = _read_all(ours)
    os.waitpid(middle, 0)  # from here on the worker is the reaper's child
    return answer or _failed(request, _Failed("worker", errno.EIO))


def _fork_without_warning() -> int:
    """Python 3.13, and some of 3.12, warn of threads that a fork's own hooks begin (os.register_at_fork): they count
    behind these. There was none at the fork, and the next one is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _second_fork(control: socket.socket, request: Request, report: int) -> None:
    """In the child. Returns only in its own child, the worker, once fastclaw has sent its byte."""
    try:
        if _fork_without_warning():
            os._exit(0)
        _prepare(control, request, report)
        os.write(report, json.dumps({"forked": request.id, "pid": os.getpid()}).encode())
    except _Failed as failed:
        os.write(report, _failed(request, failed))
        os._exit(1)
    except BaseException as error:
        os.write(report, _failed(request, _Failed("fork", getattr(error, "errno", None) or errno.EIO)))
        os._exit(1)
    os.close(report)
    if not os.read(request.fds[0], 1):
        os._exit(0)  # fastclaw is gone, or has dropped the request
    os.close(request.fds[0])


def _failed(request: Request, failed: _Failed) -> bytes:
    return json.dumps({"failed": request.id, "errno": failed.errno, "step": failed.step}).encode()


def _read_all(fd: int) -> bytes:
    with open(fd, "rb", buffering=0) as file:
        return file.read()


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


# --- a worker, before it is announced: all that can fail ---


def _prepare(control: socket.socket, request: Request, report: int) -> None:
    _step("subreaper", _be_subreaper)
    _step("stdio", _take_streams, request.fds)
    control.detach()
    _close_all_but({0, 1, 2, request.fds[0], report})
    if request.cwd is not None:
        _step("cwd", os.chdir, request.cwd)
    _step("limits", _limit, request.limits)


def _step(name: str, do: Callable[..., None], *arguments: Any) -> None:
    try:
        do(*arguments)
    except ValueError:
        raise _Failed(name, errno.EPERM) from None  # setrlimit's word for a limit that may not be raised
    except OSError as error:
        raise _Failed(name, error.errno or errno.EIO) from None


def _be_subreaper() -> None:
    """Keep orphaned descendants, so that its tree can be told from another worker's."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _take_streams(fds: list[int]) -> None:
    streams = fds[1:]
    if len(streams) == 2:
        streams = [os.open(os.devnull, os.O_RDONLY), *streams]
    for number, fd in enumerate(streams):
        os.dup2(fd, number)


def _close_all_but(kept: set[int]) -> None:
    _close([fd for fd in map(int, os.listdir("/proc/self/fd")) if fd not in kept])


def _limit(limits: list[tuple[int, int]]) -> None:
    for which, value in limits:
        bound = value if value < 2**63 else resource.RLIM_INFINITY
        resource.setrlimit(which, (bound, bound))


# --- a worker that may run ---


def _become_worker(request: Request) -> None:
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _reset_signals()
    os.environ.clear()
    os.environ.update(request.env)
    sys.argv = list(request.argv)
    _open_streams(unbuffered=bool(request.env.get("PYTHONUNBUFFERED")))


def _reset_signals() -> None:
    """As a fresh interpreter has them."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGPIPE: signal.SIG_IGN, signal.SIGXFSZ: signal.SIG_IGN}
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(signum, own.get(signum, signal.SIG_DFL))  # type: ignore[arg-type]  # real-time ones are ints
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _open_streams(unbuffered: bool) -> None:
    """sys.stdin, sys.stdout and sys.stderr anew, as the interpreter makes them (pylifecycle.c, create_stdio)."""
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    for number, (name, mode) in enumerate(_STREAMS):
        old = getattr(sys, f"__{name}__") or io.TextIOWrapper(io.BytesIO())
        size = 0 if unbuffered and mode == "w" else -1
        buffer = open(number, mode + "b", size, closefd=False)  # noqa: SIM115 - it stays open
        setattr(getattr(buffer, "raw", buffer), "name", f"<{name}>")  # noqa: B010 - as the interpreter does, and below
        stream = io.TextIOWrapper(
            buffer,
            encoding=encoding or old.encoding,
            errors="backslashreplace" if name == "stderr" else errors or old.errors,
            newline="\n",
            line_buffering=name == "stderr" or (mode == "w" and not unbuffered and buffer.isatty()),
            write_through=unbuffered and mode == "w",
        )
        stream.mode = mode  # type: ignore[misc]  # as the interpreter does
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _outcome(main: Main, argv: list[str]) -> int | None:
    """The exit code; None for one that an interrupt ended."""
    try:
        return int(main(argv) or 0)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException as error:
        _show(error)
        return None if isinstance(error, KeyboardInterrupt) else 1


def _show(error: BaseException) -> None:
    """Its traceback without our own part of it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _end(code: int | None) -> NoReturn:
    """The interpreter's own end (threads, atexit, modules, streams), without returning through `serve`'s caller."""
    if code is None:
        _end_by_interrupt()
    ctypes.pythonapi.Py_Exit(code & 0xFF)
    raise AssertionError("Py_Exit does not return")


def _end_by_interrupt() -> NoReturn:
    """End as an interpreter does: by the signal, after its own finalization."""
    threading._shutdown()  # type: ignore[attr-defined]  # what the interpreter calls, too
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(128 + signal.SIGINT)


# --- a worker that is a Python command line ---


def run_command_line(argv: list[str]) -> None:
    """`python [-uB] -c code …`, `python -m module …`, `python script …`, or a program from stdin."""
    words = argv[1:]
    while words and len(words[0]) > 1 and words[0][0] == "-":
        option = words.pop(0)
        if option == "--":
            break
        for at, letter in enumerate(option[1:], 2):
            if letter in "cm":
                value = option[at:] or (words.pop(0) if words else "")
                (_run_code if letter == "c" else _run_module)(value, words)
                return
            _set_flag(letter)
    if words and words[0] != "-":
        _run_script(words[0], words)
    else:
        _run_code(sys.stdin.read(), words[1:], "-" if words else "", "<stdin>")


def _set_flag(letter: str) -> None:
    if letter == "u":
        _open_streams(unbuffered=True)
    elif letter == "B":
        sys.dont_write_bytecode = True
    else:
        sys.stderr.write(f"fastclaw.template: a forked worker cannot have the option -{letter}\n")
        raise SystemExit(2)


def _run_code(code: str, words: list[str], name: str = "-c", file: str = "<string>") -> None:
    sys.argv = [name, *words]
    _search_from("")
    exec(compile(code, file, "exec"), _fresh_main().__dict__)


def _run_module(name: str, words: list[str]) -> None:
    sys.argv = ["-m", *words]
    _search_from(os.getcwd())
    _fresh_main()
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]  # what the interpreter calls, too


def _run_script(path: str, words: list[str]) -> None:
    sys.argv = list(words)
    if os.path.isdir(path):
        _search_from(path)
        _fresh_main()
        runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]  # as the interpreter does
        return
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        name = f"{sys.executable}: can't open file {os.path.abspath(path)!r}"
        sys.stderr.write(f"{name}: [Errno {error.errno}] {error.strerror}\n")
        raise SystemExit(2) from None
    _search_from(os.path.dirname(os.path.realpath(path)))
    module = _fresh_main()
    module.__file__ = path
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    exec(compile(source, path, "exec"), module.__dict__)


def _search_from(first: str) -> None:
    """Set sys.path as a fresh interpreter has it."""
    own = [entry for entry in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if entry]
    sys.path[:] = [first, *own, *(entry for entry in sys.path if entry not in own)]


def _fresh_main() -> types.ModuleType:
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    return module


def _load(words: list[str]) -> None:
    while words:
        if words.pop(0) != "-i" or not words:
            raise SystemExit("usage: python -m fastclaw.template [-i MODULE]...")
        importlib.import_module(words.pop(0))


def _forget_own_path() -> None:
    """Remove from sys.path where the template was started, and its PYTHONPATH: a worker has its own."""
    own = os.environ.get(PATH_VARIABLE, "").split(os.pathsep)
    sys.path[:] = [entry for entry in sys.path[1:] if entry not in own]


if __name__ == "__main__":
    _load(sys.argv[1:])
    _forget_own_path()
    serve(run_command_line)
