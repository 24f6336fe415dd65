"""What a process's socket promises (contract, section 3), on both loops and with both movers."""

import asyncio
import errno
import fcntl
import hashlib
import os
import random
import socket
import struct
import termios

import pytest

from fastclaw import limits
from fastclaw.linux import splice
from fastclaw.processes.endpoint import Endpoint
from fastclaw.runtime import OnDisconnect
from tests.processes.endpoint_rig import Client, EndpointRig, PipeEnd, endpoint
from tests.waiting import turns, until

SOCKET_ROOM = 1 << 20
"""More than a Unix socket and its overhead ever hold here (net.core.wmem_default)."""


STDIN_ROOM = limits.BULK_PIPE_BYTES // 4096 * 32768 + SOCKET_ROOM
"""What a pipe of that many slots holds at most: splice puts whole fragments of a socket, up to 32 KiB, into a slot."""


@pytest.fixture(params=["splice", "copy"], autouse=True)
def mover(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(splice, "kind", lambda: request.param)
    return str(request.param)


async def test_a_process_that_nobody_reads_blocks(rig: EndpointRig) -> None:
    assert rig.stdout.fill() == limits.PIPE_BYTES
    await turns(20)
    with pytest.raises(BlockingIOError):
        os.write(rig.stdout.fd, b"x")


async def test_a_second_client_is_turned_away_and_the_first_served_on(rig: EndpointRig) -> None:
    first = await rig.connect()
    second = rig.connect_blind()
    second.socket.send(b"for nobody")
    assert await second.read() == b"", "an end, and no reset"
    await first.send(b"x")
    assert await rig.stdin.read() == b"x"


async def test_half_close_is_eof_on_stdin_while_output_flows(rig: EndpointRig) -> None:
    client = await rig.connect()
    await client.send(b"all of it")
    client.end_input()
    assert await rig.stdin.read() == b"all of it"
    assert await rig.stdin.read() == b""
    await rig.stdout.write(b"answer")
    rig.stdout.close()
    assert await client.read_to_end() == b"answer"
    await until(lambda: not rig.endpoint.connected)


async def test_eof_of_the_output_while_input_flows(rig: EndpointRig) -> None:
    client = await rig.connect()
    assert repr(rig.endpoint) == f"<Endpoint {rig.path} listening connected>"
    rig.stdout.close()
    assert await client.read() == b""
    assert rig.drained == 1
    assert repr(rig.endpoint) == f"<Endpoint {rig.path} listening connected drained>"
    await client.send(b"still")
    assert await rig.stdin.read() == b"still"
    client.end_input()
    assert await rig.stdin.read() == b""
    await rig.vacant()


@pytest.mark.parametrize(
    ("on_disconnect", "is_abandoned", "stdin_ends"), [("eof", 0, True), ("hold", 0, False), ("kill", 1, True)]
)
async def test_a_client_that_leaves(on_disconnect: OnDisconnect, is_abandoned: int, stdin_ends: bool) -> None:
    async with endpoint(on_disconnect) as rig:
        client = await rig.connect()
        await client.send(b"last words")
        client.close()
        assert await rig.stdin.read() == b"last words"
        await rig.vacant()
        assert rig.abandoned == is_abandoned
        if stdin_ends:
            assert await rig.stdin.read() == b""
        else:
            again = await rig.connect()
            await again.send(b"back")
            assert await rig.stdin.read() == b"back"
            again.end_input()
            assert await rig.stdin.read() == b""


async def test_half_close_alone_does_not_count_as_leaving() -> None:
    async with endpoint("kill") as rig:
        client = await rig.connect()
        client.end_input()
        assert await rig.stdin.read() == b""
        await rig.stdout.write(b"x")
        assert await client.read() == b"x"
        assert rig.abandoned == 0
        client.close()
        await until(lambda: rig.abandoned == 1)


async def test_two_clients_that_left_are_delivered_one_after_the_other() -> None:
    async with endpoint("hold") as rig:
        expected = b""
        for letter in (b"a", b"b", b"c"):
            client = await rig.connect()
            await client.send(letter * 60_000)
            expected += letter * 60_000
            client.close()
            await rig.vacant()
        received = b""
        while len(received) < len(expected):
            received += await rig.stdin.read()
        assert received == expected


async def test_clients_that_left_with_undelivered_input_are_bounded() -> None:
    async with endpoint("hold") as rig:
        fed = await _fill_up(await rig.connect())
        rig._clients[-1].close()
        await rig.vacant()
        assert fed >= limits.PIPE_BYTES
        for _ in range(limits.MAX_DRAINING_CLIENTS - 1):
            client = await rig.connect()
            await client.send(b"x" * 1000)
            client.close()
            await rig.vacant()
        late = rig.connect_blind()
        await turns(20)
        assert not rig.endpoint.connected  # it waits in the backlog
        received = 0
        while received < fed + (limits.MAX_DRAINING_CLIENTS - 1) * 1000:
            received += len(await rig.stdin.read())
        await until(lambda: rig.endpoint.connected)
        await late.send(b"late")
        assert await rig.stdin.read() == b"late"


async def test_a_client_that_closes_and_comes_back_at_once_is_served() -> None:
    """Both events are due in one turn of the loop; the new connection must not find the old one in its way."""
    async with endpoint("hold") as rig:
        client = await rig.connect()
        for number in range(50):
            client.close()
            client = rig.connect_blind()
            await rig.stdout.write(b"%03d" % number)
            assert await client.read() == b"%03d" % number
        assert rig.gaps == 0


async def test_rapid_connects_and_disconnects_lose_no_output() -> None:
    async with endpoint("hold") as rig:
        writing = asyncio.create_task(_write_numbers(rig.stdout, 2_000))
        text = b""
        while not text.endswith(b"1999\n"):
            client = rig.connect_blind()
            await asyncio.sleep(0)
            text += await client.read(64)
            # Half-close and read on: what was handed over is taken before the connection is given up.
            text += await _leave_without_loss(client)
        await writing
        assert text == b"".join(b"%d\n" % number for number in range(2_000))
        assert rig.gaps == 0


async def _write_numbers(stdout: PipeEnd, count: int) -> None:
    for number in range(count):
        await stdout.write(b"%d\n" % number)
        if number % 50 == 0:
            await asyncio.sleep(0)


async def _leave_without_loss(client: Client) -> bytes:
    """Tell the sender to stop, take what is there, close: SHUT_RD makes the next write of the other side fail."""
    client.socket.shutdown(socket.SHUT_RD)
    found = b""
    while data := client.socket.recv(1 << 20):
        found += data
    client.close()
    return found


async def test_output_that_a_client_left_unread_is_a_gap() -> None:
    async with endpoint("hold") as rig:
        client = await rig.connect()
        await rig.stdout.write(b"unread")
        await until(lambda: rig.endpoint.moved_out == 6)
        client.close()
        await rig.vacant()
        assert rig.gaps == 1


async def test_output_left_unread_in_the_middle_of_a_move_is_a_gap() -> None:
    """See test_relay: of such a one SO_ERROR says nothing any more."""
    async with endpoint("hold") as rig:
        move = rig.endpoint._move_output

        def move_and_see_it_go(source: int, target: int) -> int:
            moved = move(source, target)
            os.write(rig.stdout.fd, b"and what it does not take any more")
            client.close()
            with socket.socket(fileno=os.dup(target)) as ours:
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
            return moved

        rig.endpoint._move_output = move_and_see_it_go
        client = await rig.connect()
        await rig.stdout.write(b"unread")
        await rig.vacant()
        assert rig.gaps == 1


async def test_a_process_that_closes_its_stdin_refuses_input_and_goes_on_writing(rig: EndpointRig) -> None:
    client = await rig.connect()
    rig.stdin.close()
    with pytest.raises(BrokenPipeError):
        await _send_for_ever(client)
    await rig.stdout.write(b"still here")
    assert await client.read() == b"still here"
    rig.stdout.close()
    assert await client.read() == b""


async def test_a_client_blocked_on_a_full_stdin_learns_that_nobody_reads(rig: EndpointRig) -> None:
    client = await rig.connect()
    sending = asyncio.create_task(client.send(b"x" * (2 * STDIN_ROOM)))
    await until(lambda: _is_full(rig.stdin))
    rig.stdin.close()
    with pytest.raises(BrokenPipeError):
        await sending


async def _send_for_ever(client: Client) -> None:
    async with asyncio.timeout(10):
        while True:
            await client.send(b"x")
            await asyncio.sleep(0)


async def _fill_up(client: Client) -> int:
    """Send until the socket and the pipe behind it, enlarged or not, take no more."""
    sent = 0
    for _ in range(100):
        sent += client.fill()
        await asyncio.sleep(0)
    return sent


def _is_full(end: PipeEnd) -> bool:
    waiting = fcntl.ioctl(end.fd, termios.FIONREAD, b"\0\0\0\0")
    return bool(struct.unpack("i", waiting)[0] >= limits.PIPE_BYTES)


async def test_the_end_is_clean_even_with_input_unread(rig: EndpointRig) -> None:
    """A close with unread input would be ECONNRESET for the client, and cost it output that it had not read yet."""
    client = await rig.connect()
    await rig.stdout.write(b"o" * 1000)
    for _ in range(20):
        client.fill()
        await asyncio.sleep(0)
    rig.stdout.close()
    await until(lambda: rig.drained == 1)
    rig.endpoint.close()
    assert await client.read_to_end() == b"o" * 1000


async def test_without_stdin_input_is_refused() -> None:
    async with endpoint(has_stdin=False) as rig:
        client = await rig.connect()
        with pytest.raises(BrokenPipeError):
            client.socket.send(b"x")
        await rig.stdout.write(b"x")
        rig.stdout.close()
        assert await client.read_to_end() == b"x"


async def test_a_client_after_the_end_of_output_reads_eof() -> None:
    async with endpoint("hold") as rig:
        rig.stdout.close()
        for _ in range(3):
            client = rig.connect_blind()
            assert await client.read() == b""
            client.close()
            await rig.vacant()
        assert rig.drained == 1


async def test_a_reader_that_never_reads_holds_no_more_than_pipe_and_socket(rig: EndpointRig) -> None:
    await rig.connect()
    written = 0
    for _ in range(300):
        written += rig.stdout.fill()
        await asyncio.sleep(0)
    assert written <= 2 * limits.BULK_PIPE_BYTES + SOCKET_ROOM
    assert rig.endpoint.has_pending_output()


async def test_a_process_that_never_reads_holds_no_more_than_pipe_and_socket(rig: EndpointRig) -> None:
    client = await rig.connect()
    sent = 0
    for _ in range(300):
        sent += client.fill()
        await asyncio.sleep(0)
    assert sent <= STDIN_ROOM


async def test_a_few_bytes_of_input_do_not_enlarge_the_pipe(rig: EndpointRig) -> None:
    """Pipes of 1 MiB are few per user (fs.pipe-user-pages-soft)."""
    client = await rig.connect()
    for _ in range(3):
        await client.send(b"x" * 1000)
        assert len(await rig.stdin.read()) > 0
    assert fcntl.fcntl(rig.stdin.fd, fcntl.F_GETPIPE_SZ) == limits.PIPE_BYTES


async def test_a_blocked_stdin_does_not_hold_up_the_output(rig: EndpointRig) -> None:
    client = await rig.connect()
    for _ in range(50):
        client.fill()
        await asyncio.sleep(0)
    await rig.stdout.write(b"x")
    assert await client.read() == b"x"


async def test_64_mib_through_and_back_with_a_checksum(rig: EndpointRig) -> None:
    size = 64 * limits.MIB
    block = random.Random(0).randbytes(limits.MIB)
    client = await rig.connect()

    async def send() -> None:
        for _ in range(size // len(block)):
            await client.send(block)
        client.end_input()

    async def process() -> None:
        while data := await rig.stdin.read(limits.MIB):
            await rig.stdout.write(data)
        rig.stdout.close()

    async def receive() -> str:
        digest = hashlib.blake2b()
        while data := await client.read(limits.MIB):
            digest.update(data)
        return digest.hexdigest()

    async with asyncio.timeout(30):
        _, _, found = await asyncio.gather(send(), process(), receive())
    expected = hashlib.blake2b()
    for _ in range(size // len(block)):
        expected.update(block)
    assert found == expected.hexdigest()


@pytest.mark.parametrize("seed", range(4))
async def test_random_chunks_both_ways(rig: EndpointRig, seed: int) -> None:
    rng = random.Random(seed)
    down, up = rng.randbytes(rng.randrange(400_000)), rng.randbytes(rng.randrange(400_000))
    client = await rig.connect()

    async def feed(write: object, data: bytes, pace: random.Random) -> None:
        assert callable(write)
        while data:
            size = pace.choice((1, 37, 4096, 65536, 200_000))
            await write(data[:size])
            data = data[size:]
            if pace.random() < 0.3:
                await asyncio.sleep(0)

    async def take(read: object, pace: random.Random) -> bytes:
        assert callable(read)
        found = bytearray()
        while data := await read(pace.choice((100, 5000, 65536, 300_000))):
            found += data
            if pace.random() < 0.3:
                await asyncio.sleep(0)
        return bytes(found)

    async def output() -> None:
        await feed(rig.stdout.write, down, random.Random(seed + 1))
        rig.stdout.close()

    async def input_() -> None:
        await feed(client.send, up, random.Random(seed + 2))
        client.end_input()

    _, _, got_down, got_up = await asyncio.gather(
        output(),
        input_(),
        take(client.read, random.Random(seed + 3)),
        take(rig.stdin.read, random.Random(seed + 4)),
    )
    assert got_down == down
    assert got_up == up


async def test_closing_unlinks_and_is_idempotent(rig: EndpointRig) -> None:
    client = await rig.connect()
    rig.endpoint.close()
    rig.endpoint.close()
    assert repr(rig.endpoint) == f"<Endpoint {rig.path} closed>"
    assert not os.path.exists(rig.path)  # noqa: ASYNC240 - one stat
    assert await client.read() == b""
    assert await rig.stdin.read() == b""
    with pytest.raises(BrokenPipeError):
        os.write(rig.stdout.fd, b"x")


async def test_closing_from_within_on_drained(rig: EndpointRig) -> None:
    """As the table of processes does it, in the middle of the endpoint's own callback."""
    client = await rig.connect()
    rig.then = rig.endpoint.close
    await client.send(b"never read")
    await rig.stdout.write(b"all")
    rig.stdout.close()
    assert await client.read_to_end() == b"all"
    assert not os.path.exists(rig.path)  # noqa: ASYNC240 - one stat


async def test_a_descriptor_shortage_does_not_spin_and_passes(
    rig: EndpointRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    class NoRoom:
        def accept(self) -> None:
            nonlocal tries
            tries += 1
            raise OSError(errno.EMFILE, "no descriptor")

        fd = rig.endpoint._listener.fd

    monkeypatch.setattr(rig.endpoint, "_listener", NoRoom())
    client = rig.connect_blind()
    await until(lambda: tries > 0)
    await turns(50)
    assert tries == 1
    monkeypatch.undo()
    await rig.stdout.write(b"served")
    assert await client.read() == b"served"


async def test_closing_during_a_descriptor_shortage(rig: EndpointRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.endpoint._accept_later()
    rig.endpoint.close()
    assert rig.endpoint._retry is None


@pytest.mark.parametrize("seed", range(3))
async def test_anything_in_any_order_leaves_nothing_behind(seed: int) -> None:
    """The books of the conftest are the assertion; and that no callback raises."""
    rng = random.Random(seed)
    for _ in range(15):
        async with endpoint(rng.choice(("eof", "hold", "kill"))) as rig:
            for _ in range(rng.randrange(12)):
                _do_something(rig, rng)
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
        assert isinstance(rig.endpoint, Endpoint)
        assert not rig.endpoint._is_open


def _do_something(rig: EndpointRig, rng: random.Random) -> None:
    clients = [client for client in rig._clients if client.socket.fileno() >= 0]
    client = rng.choice(clients) if clients else None
    action = rng.randrange(8)
    try:
        if action <= 1 and len(clients) < limits.LISTEN_BACKLOG:
            rig.connect_blind()
        elif action == 2 and client:
            client.close()
        elif action == 3 and client:
            client.end_input()
        elif action == 4 and client:
            client.fill()
        elif action == 5 and rig.stdout.fd >= 0:
            rig.stdout.fill()
        elif action == 6:
            rig.stdin.close()
        elif action == 7 and rng.random() < 0.3:
            rig.stdout.close()
    except OSError as error:
        assert error.errno in (errno.EPIPE, errno.ENOTCONN, errno.ECONNRESET)  # noqa: PT017 - allowed, not needed
