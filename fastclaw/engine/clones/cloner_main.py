"""Makes clones and removes them: a process of its own, with mounts of its own.

An overlay that it mounts is seen in its own mount namespace only; the container's namespace is copied from that, and
then the overlay is unmounted here. So each mount ends with its container, and all with this process, however it ends.
It is the subreaper of what it starts: containers are its children, which it reaps.

Started by `cloner.py` with its end of a SOCK_SEQPACKET pair as the only argument. First comes a packet of settings,
with a descriptor of the directory, whose lock is held as long as that is open. Then orders, each answered by its
number, in any order. When the other end closes, however fastclaw ended, the containers have a moment to end with their
spawners; then everything is removed, and it ends. Standard library, besides what is of ours and needs no more.
"""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastclaw import engine_limits
from fastclaw.engine.clones import remains
from fastclaw.engine.clones.remains import CLONES, LAYERS, STATE, TRASH, VOLUME, VOLUMES
from fastclaw.linux import file_trees, mounts
from fastclaw.linux.packets import receive

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

Order = dict[str, Any]

_DEFAULTED = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD]


class Starting:
    """A clone whose crun runs. `told` is where it says what goes wrong."""

    def __init__(self, order: Order, told: int) -> None:
        self.order = order
        self.told = told
        self.is_over = threading.Event()
        self.is_abandoned = False


class GracePeriod:
    """Has the kernel begin to wait for what the next crun would wait for.

    The first process that is put into a control group after a while waits for an RCU grace period (6 to 15 ms measured,
    a third of a clone's start; kernel/cgroup/cgroup.c, cgroup_threadgroup_rwsem), those soon after it do not. So our
    own pid is written into our own group, which changes nothing, while crun does what comes before its turn.

    Parameters:
        procs: the `cgroup.procs` of our own group, open for writing, and taken over; None: there is none.
    """

    def __init__(self, procs: int | None) -> None:
        self._procs = procs
        self._pid = str(os.getpid()).encode()
        self._thread = ThreadPoolExecutor(1)
        self._begun: Future[None] | None = None

    def begin(self) -> None:
        """Return at once. Nothing is done where one has begun and is not over."""
        if self._procs is not None and (self._begun is None or self._begun.done()):
            self._begun = self._thread.submit(self._write, self._procs)

    def _write(self, procs: int) -> None:
        with suppress(OSError):  # then a start takes as long as it does
            os.write(procs, self._pid)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
        if self._procs is not None:
            os.close(self._procs)
            self._procs = None


class Trash:
    """Removes directories behind: one with many files holds up no other, nor who has left it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._names = itertools.count()
        self._waiting = threading.Semaphore(engine_limits.CLONER_TRASH)

    def take(self, path: str) -> None:
        """Return once it is out of the way; where too many are, once it is removed. One that is not there is fine.

        Raises:
            OSError: it cannot be moved, or removed.
        """
        name = f"{TRASH}/{next(self._names)}-{os.getpid()}"
        try:
            os.rename(path, name)
        except FileNotFoundError:
            return
        if self._waiting.acquire(blocking=False):
            self._thread.submit(self._remove, name)
        else:
            file_trees.remove_tree(name)

    def _remove(self, name: str) -> None:
        try:
            with suppress(OSError):  # it goes with the whole directory, which says what is in the way
                file_trees.remove_tree(name)
        finally:
            self._waiting.release()

    def shutdown(self) -> None:
        """Leave what waits to the removal of the whole directory."""
        self._thread.shutdown(cancel_futures=True)


def own_procs() -> int | None:
    """A descriptor of `cgroup.procs` of the group that we are in, of any hierarchy."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        groups = [line.rstrip("\n").split(":", 2)[1:] for line in file]
    for controllers, path in groups:
        folder = f"{remains.CGROUPS}/{controllers.removeprefix('name=')}{path}"
        with suppress(OSError):
            return os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    return None


class ClonerProcess:
    """What the process does.

    Parameters:
        orders: connected to fastclaw; blocking.
    """

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._frame = memoryview(bytearray(engine_limits.CLONER_FRAME_BYTES))
        self._crun = self._directory = ""
        self._lock = -1
        self._nothing, end = os.pipe()
        os.close(end)
        self._starting: dict[int, Starting] = {}
        self._by_id: dict[str, int] = {}
        self._namespaces: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._removals = ThreadPoolExecutor(engine_limits.CLONER_THREADS)
        self._copies = ThreadPoolExecutor(engine_limits.CLONER_COPIES)
        self._trash = Trash()
        self._grace_period = GracePeriod(own_procs())

    def run(self) -> None:
        """Until the other end closes and all is removed."""
        wakes, wake = socket.socketpair()
        wakes.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._orders, select.POLLIN)
        poll.register(wakes, select.POLLIN)
        is_open = self._settle()
        while is_open:
            ready = dict(poll.poll())
            if wakes.fileno() in ready:
                with suppress(BlockingIOError):
                    wakes.recv(4096)
                self._reap()
            if self._orders.fileno() in ready:
                is_open = self._obey()
        self._finish()

    def _settle(self) -> bool:
        size, fds = receive(self._orders, self._frame, 1)
        if not size:
            return False
        settings = json.loads(bytes(self._frame[:size]))
        (self._lock,) = fds
        self._crun, self._directory = settings["crun"], settings["directory"]
        mounts.adopt_orphans()
        mounts.own_mounts()
        if settings["hides"]:
            mounts.unmount(settings["hides"])
            mounts.mount_memory(settings["hides"])  # crun makes directories there, which go with our mounts
        os.chdir(self._directory)  # by its path: the descriptor is in the mount namespace of fastclaw
        self._say({"id": 0})
        return True

    def _obey(self) -> bool:
        size, _ = receive(self._orders, self._frame, 0)
        if not size:
            return False
        order: Order = json.loads(bytes(self._frame[:size]))
        does: Callable[[Order], None] = getattr(self, f"_{order['do']}")
        try:
            does(order)
        except OSError as error:
            self._fail(order, error)
        return True

    def _say(self, answer: dict[str, Any]) -> None:
        with suppress(OSError):  # fastclaw has ended
            self._orders.send(json.dumps(answer).encode())

    def _fail(self, order: Order, error: OSError) -> None:
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        self._say({"id": order["id"], "error": text, "errno": error.errno})

    # --- layers ---

    def _hold(self, order: Order) -> None:
        """Have a layer as long as this fastclaw lives."""
        self._copies.submit(self._held, order)

    def _held(self, order: Order) -> None:
        draft = f"{LAYERS}/.{order['name']}"
        try:
            file_trees.remove_tree(draft)
            self._link(order["source"], draft)
            os.stat(order["witness"])  # removed before anything of the layer is
            os.rename(draft, f"{LAYERS}/{order['name']}")
            self._say({"id": order["id"]})
        except OSError as error:
            with suppress(OSError):
                file_trees.remove_tree(draft)
            self._fail(order, error)

    def _link(self, source: str, draft: str) -> None:
        """Podman covers its layers with a mount of themselves, and where somebody has run it by hand that is the host's
        (containers/storage, drivers/overlay: MakePrivate). No link leads from one mount to another: below both it does.
        """
        try:
            file_trees.link_tree(source, draft)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            return
        file_trees.remove_tree(draft)
        both = os.path.commonpath([source, self._directory])
        bare = mounts.open_bare(both)
        try:
            places = (source, f"{self._directory}/{draft}")
            file_trees.link_tree(*(f"/proc/self/fd/{bare}/{os.path.relpath(place, both)}" for place in places))
        finally:
            os.close(bare)

    def _drop(self, order: Order) -> None:
        """No clone has this layer any more."""
        self._removals.submit(self._removed_tree, order, LAYERS)

    # --- starts ---

    def _start(self, order: Order) -> None:
        try:
            self._grace_period.begin()
            self._prepare(order)
            self._launch(order)
        except OSError:
            self._unmount(order["clone"])
            with suppress(OSError):
                remains.remove_clone(".", order["clone"])
            raise

    def _prepare(self, order: Order) -> None:
        """Directories, files, the overlay."""
        own = f"{CLONES}/{order['clone']}"
        uid, gid, mode = order["upper"]
        root = 0 if order["ids"] is None else order["ids"][0]
        _make_closed(own, root)
        os.mkdir(f"{own}/work", 0o700)
        os.mkdir(f"{own}/upper", 0o700)
        os.chmod(f"{own}/upper", mode)
        os.chown(f"{own}/upper", uid, gid)
        os.mkdir(f"{own}/merged", 0o700)
        _write(f"{own}/config.json", order["config"], 0o600)
        for file in order["files"]:
            path = f"{own}/{file['name']}"
            _write(path, file["text"], file["mode"])
            os.chown(path, file["uid"], file["gid"])
        for volume in order["volumes"]:
            _make_volume(f"{VOLUMES}/{volume['name']}", root, volume["uid"], volume["gid"], volume["mode"])
        layers = LAYERS
        if order["ids"] is not None:
            os.mkdir(f"{own}/layers", 0o700)
            layers = f"{own}/layers"
            mounts.mount_mapped(LAYERS, layers, self._namespace(*order["ids"]))
        lower = [f"{layers}/{name}" for name in order["lower"]]
        mounts.mount_overlay(lower, f"{own}/upper", f"{own}/work", f"{own}/merged")
        if order["ids"] is not None:
            mounts.unmount(layers)  # the overlay has it

    def _namespace(self, first: int, count: int) -> int:
        """A user namespace with these ids; a range is given out again and again."""
        known = self._namespaces.pop((first, count), None)
        if known is None:
            known = mounts.make_user_namespace(first, count)
        self._namespaces[first, count] = known
        if len(self._namespaces) > engine_limits.CLONER_NAMESPACES:
            os.close(self._namespaces.popitem(last=False)[1])
        return known

    def _launch(self, order: Order) -> None:
        id = order["clone"]
        own = f"{self._directory}/{CLONES}/{id}"
        root = f"{self._directory}/{STATE}"
        argv = [self._crun, f"--root={root}", "--cgroup-manager=cgroupfs", "run", "--detach", f"--bundle={own}"]
        # Pipes, for crun gives its streams to root inside (1.8.1, maybe_chown_std_streams): /dev/null is the host's.
        told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = os.posix_spawn(
                self._crun,
                [*argv, f"--pid-file={own}/pid", id],
                {"PATH": os.defpath},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((self._nothing, tell, tell))
                ],
                setsigdef=_DEFAULTED,
                setsigmask=[],
            )
        except OSError:
            os.close(told)
            raise
        finally:
            os.close(tell)
        self._starting[pid] = Starting(order, told)
        self._by_id[id] = pid

    def _reap(self) -> None:
        """Whatever has ended: a crun, or a container's init."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if (starting := self._starting.pop(pid, None)) is not None:
                    self._started(starting, status)

    def _started(self, starting: Starting, status: int) -> None:
        order = starting.order
        id = order["clone"]
        self._by_id.pop(id, None)
        self._unmount(id)
        starting.is_over.set()
        said = _said(starting.told)
        if status == 0:
            try:
                with open(f"{CLONES}/{id}/pid", encoding="ascii") as file:
                    self._say({"id": order["id"], "pid": int(file.read())})
                return
            except (OSError, ValueError) as error:
                said = str(error)
        said = said or f"crun ended with status {os.waitstatus_to_exitcode(status)}"
        self._say({"id": order["id"], "error": said, "errno": 0})

    def _unmount(self, id: str) -> None:
        """Nothing here shows the overlay any more; the container has its own."""
        for name in ("merged", "layers"):
            with suppress(OSError):
                mounts.unmount(f"{CLONES}/{id}/{name}")

    # --- removals ---

    def _remove(self, order: Order) -> None:
        pid = self._by_id.get(order["clone"])
        starting = self._starting.get(pid) if pid is not None else None
        if pid is not None:
            os.kill(pid, signal.SIGKILL)  # ours, and not reaped
        self._removals.submit(self._removed, order, starting)

    def _removed(self, order: Order, starting: Starting | None) -> None:
        try:
            if starting is not None:
                starting.is_over.wait(engine_limits.CLONE_END_MS / 1000)
            id = order["clone"]
            if remains.end_clone(".", id, adopted=starting is not None or order["adopted"]):
                self._trash.take(f"{CLONES}/{id}")
            self._say({"id": order["id"]})
        except OSError as error:
            self._fail(order, error)

    def _unvolume(self, order: Order) -> None:
        self._removals.submit(self._removed_tree, order, VOLUMES)

    def _removed_tree(self, order: Order, folder: str) -> None:
        try:
            self._trash.take(f"{folder}/{order['name']}")
            self._say({"id": order["id"]})
        except OSError as error:
            self._fail(order, error)

    # --- the end ---

    def _finish(self) -> None:
        """Let the containers end by themselves, then see to it; remove everything."""
        deadline = time.monotonic() + engine_limits.CLONES_LEAVE_MS / 1000
        while children := _children():
            if time.monotonic() > deadline:
                remains.end_all(children)
            self._reap()
            time.sleep(engine_limits.CLONE_LOOK_MS / 1000)
        for threads in (self._removals, self._copies, self._trash):
            threads.shutdown()
        self._grace_period.close()
        if not self._directory:
            return
        with suppress(OSError):  # what stays is removed by the next fastclaw, as the directory is no longer locked
            for id in os.listdir(CLONES):
                self._unmount(id)
            os.chdir("/")
            remains.remove_directory(self._directory, adopted=False)


def _children() -> list[int]:
    """There is one thread, which has all of them."""
    with open("/proc/thread-self/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def _write(path: str, text: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _make_closed(path: str, root: int) -> None:
    """A directory for what is a container's: none of the host's users gets to the files that are made inside, of which
    some may be set-user-ID; crun does, which has the group when it has become root inside.

    Parameters:
        root: the host's id of root inside.
    """
    os.mkdir(path, 0o700)
    os.chown(path, 0, root)
    os.chmod(path, 0o710)


def _make_volume(path: str, root: int, uid: int, gid: int, mode: int) -> None:
    """One that is there already keeps what is in it: the container before had it."""
    with suppress(FileExistsError):
        _make_closed(path, root)
        os.mkdir(f"{path}/{VOLUME}", 0o700)
        os.chown(f"{path}/{VOLUME}", uid, gid)
        os.chmod(f"{path}/{VOLUME}", mode)


def _said(told: int) -> str:
    """What crun has written, in one line."""
    try:
        with suppress(BlockingIOError):  # a container's init still has the other end, and has said nothing
            return " ".join(os.read(told, engine_limits.ENGINE_LOG_BYTES).decode("utf-8", "replace").split())
    finally:
        os.close(told)
    return ""


def main() -> None:
    """Obey until the other end closes."""
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        ClonerProcess(orders).run()


if __name__ == "__main__":
    main()
