"""Which ends of commands may be their sandbox's, and are where that is gone."""

from __future__ import annotations

import pytest

from fastclaw.runtime import ExitRecord
from fastclaw.sandbox import Host, SandboxGone
from fastclaw.sandbox.done import done_of


@pytest.mark.parametrize("reason", ["exited", "signaled", "killed", "timeout", "oom", "unknown"])
async def test_an_end_is_the_sandboxs_where_that_is_gone_and_it_may_be(reason: str) -> None:
    async with Host(runtime="local") as host:
        box = await host.start()
        done = done_of(ExitRecord(process_id="p", state="exited", reason=reason))  # type: ignore[arg-type]  # each is one of ExitReason
        assert await box._presence.check(done) is done
        await box.close()
        if reason in {"exited", "timeout", "oom"}:
            assert await box._presence.check(done) is done
        else:
            with pytest.raises(SandboxGone, match="ended with its sandbox") as gone:
                await box._presence.check(done)
            assert gone.value.done is done
