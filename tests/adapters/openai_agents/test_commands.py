"""Commands, to their ends and with a terminal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from agents.sandbox import Manifest
from agents.sandbox.errors import ExecTimeoutError, ExecTransportError, ExposedPortUnavailableError
from agents.sandbox.manifest import Environment
from agents.sandbox.session.pty_types import PTY_PROCESSES_MAX
from agents.sandbox.types import Group, User

from fastclaw.adapters.openai_agents import FastclawSandboxClientOptions

if TYPE_CHECKING:
    from agents.sandbox.session import SandboxSession

    from fastclaw.adapters.openai_agents import FastclawSandboxClient

SLEEPS = "cat /proc/[0-9]*/comm | grep -cx sleep"


async def said(session: SandboxSession, text: str) -> str:
    return (await session.exec(text)).stdout.decode().strip()


async def test_a_command_has_its_streams_apart_its_code_and_the_workspace_to_run_in(session: SandboxSession) -> None:
    done = await session.exec("pwd; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.exit_code) == (b"/workspace\n", b"err\n", 7)
    assert (await session.exec("kill -9 $$")).exit_code == 137


async def test_what_does_not_start_says_why_by_the_codes_of_a_shell(session: SandboxSession) -> None:
    missing = await session.exec("no-such-program", shell=False)
    assert missing.exit_code == 127
    assert b"no-such-program" in missing.stderr
    unknown = await session.exec("id", user="who")
    assert unknown.exit_code == 125
    assert b"who" in unknown.stderr


async def test_a_user_is_ours_and_needs_no_sudo(session: SandboxSession) -> None:
    assert (await session.exec("id -u", user="65534")).stdout == b"65534\n"


async def test_users_of_the_manifest_are_made(client: FastclawSandboxClient, image: str) -> None:
    manifest = Manifest(users=[User(name="worker")], groups=[Group(name="crew", users=[User(name="worker")])])
    async with await client.create(manifest=manifest, options=FastclawSandboxClientOptions(image=image)) as session:
        assert (await session.exec("id -Gn", user=User(name="worker"))).stdout == b"worker crew\n"
    await client.delete(session)


async def test_the_variables_are_those_of_the_manifest(client: FastclawSandboxClient) -> None:
    async with await client.create(manifest=Manifest(environment=Environment(value={"GREETING": "hello"}))) as session:
        assert await said(session, "echo $GREETING") == "hello"
    await client.delete(session)


async def test_a_timeout_ends_the_whole_tree(session: SandboxSession) -> None:
    with pytest.raises(ExecTimeoutError):
        await session.exec("sleep 100 & sleep 100", timeout=0.2)
    assert await said(session, SLEEPS) == "0"


async def test_a_call_that_is_cancelled_ends_its_tree(session: SandboxSession) -> None:
    running = asyncio.create_task(session.exec("touch started; sleep 100"))
    await session.exec("until [ -e started ]; do sleep 0.01; done", timeout=30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await session.exec(f"until [ $({SLEEPS}) = 0 ]; do :; done", timeout=30)


async def test_of_much_output_the_ends_are_kept(session: SandboxSession) -> None:
    done = await session.exec("echo first; head -c 30000000 /dev/zero | tr '\\0' x; echo last")
    assert len(done.stdout) == 16 << 20
    assert done.stdout.startswith(b"first\n")
    assert done.stdout.endswith(b"last\n")


async def test_a_server_that_a_command_starts_goes_on(session: SandboxSession) -> None:
    await session.exec("sleep 100 &", timeout=30)
    started = await session.pty_exec_start("sleep 100 </dev/null >/dev/null 2>&1 & echo $!")
    assert started.exit_code == 0
    assert await said(session, SLEEPS) == "2"


async def test_no_terminal_is_left_when_all_are_ended(session: SandboxSession) -> None:
    started = await session.pty_exec_start("sh", shell=False, tty=True, yield_time_s=0)
    assert started.process_id is not None
    await session.pty_write_stdin(session_id=started.process_id, chars="trap '' TERM; sleep 100\n")
    await session.pty_terminate_all()
    assert await said(session, SLEEPS) == "0"


async def test_there_are_no_more_processes_than_the_sdk_allows(session: SandboxSession) -> None:
    starts = (session.pty_exec_start("sleep 100", yield_time_s=0) for _ in range(PTY_PROCESSES_MAX + 2))
    updates = await asyncio.gather(*starts)
    ended = [update.exit_code for update in updates if update.process_id is None]
    assert ended == [137, 137]
    assert await said(session, SLEEPS) == str(PTY_PROCESSES_MAX)


async def test_a_sandbox_that_is_gone_is_a_transport_error(session: SandboxSession) -> None:
    started = await session.pty_exec_start("sleep 100", yield_time_s=0)
    await session._inner._bring(session._inner.box.close())
    assert not await session.running()
    with pytest.raises(ExecTransportError):
        await session.exec("true")
    with pytest.raises(ExecTransportError):
        await session.pty_write_stdin(session_id=started.process_id or 0, chars="")


async def test_ports_are_not_offered(session: SandboxSession) -> None:
    with pytest.raises(ExposedPortUnavailableError):
        await session.resolve_exposed_port(8080)


def test_a_session_is_the_same_in_another_event_loop(client: FastclawSandboxClient) -> None:
    session = asyncio.run(client.create())
    asyncio.run(session.start())
    assert asyncio.run(said(session, "pwd")) == "/workspace"
    asyncio.run(client.delete(session))


async def test_an_image_whose_user_may_not_make_the_workspace_has_one(client: FastclawSandboxClient) -> None:
    options = FastclawSandboxClientOptions(start={"user": "65534"})
    async with await client.create(options=options) as session:
        assert await said(session, "id -u; echo hello > notes.txt; cat notes.txt") == "65534\nhello"
    await client.delete(session)
