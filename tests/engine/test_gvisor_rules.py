"""What gVisor is told, and what is said of what it cannot do."""

import pytest

from fastclaw.engine.engines import Engine
from fastclaw.engine.gvisor import FLAGS, is_gvisor, runtime_flags, why_no_network, why_too_old
from fastclaw.errors import InvalidParams
from fastclaw.options import Options


@pytest.mark.parametrize(
    ("runtime", "is_it"), [("runsc", True), ("/opt/gvisor/runsc", True), ("crun", False), ("/opt/runsc/crun", False)]
)
def test_it_is_known_by_its_name(runtime: str, is_it: bool) -> None:
    assert is_gvisor(runtime) is is_it
    assert runtime_flags(runtime, ["debug"]) == ([*FLAGS, "debug"] if is_it else ["debug"])


@pytest.mark.parametrize(
    ("version", "year"),
    [
        ("runsc version 0.0~20221219.0", "2022"),
        ("runsc version release-20231204.0", "2023"),
        ("runsc version 0.0~20240729.0", None),
        ("runsc version release-20240101.0", None),
        ("runsc version release-20260101.0", None),
        ("runsc version VERSION_MISSING", None),
        ("", None),
    ],
)
def test_a_release_that_is_too_old_is_named(version: str, year: str | None) -> None:
    said = why_too_old(version)
    assert said == (None if year is None else f"gVisor of {year} is too old; install a release of 2024 or later")


@pytest.mark.parametrize(
    ("mode", "flags", "word"),
    [
        ("none", [], None),
        ("proxy", [], "listener"),
        ("bridge", ["network=sandbox"], "interfaces"),
        ("open", ["debug"], "network=sandbox"),
        ("open", ["network=sandbox"], None),
        ("open", None, None),
    ],
)
def test_a_network_that_cannot_be_had_is_refused_with_its_reason(
    mode: str, flags: list[str] | None, word: str | None
) -> None:
    said = why_no_network(mode, flags)
    assert said is None if word is None else word in (said or "")


@pytest.mark.parametrize("kind", ["podman", "docker"])
async def test_an_engine_that_is_not_ours_has_flags_of_its_own(kind: str) -> None:
    engine = Engine(kind)  # type: ignore[arg-type]  # one of two words
    with pytest.raises(InvalidParams, match="not ours") as refused:
        await engine.start(Options(url="unix:///nowhere", oci_runtime_flags=["debug"]), "flags", None)
    assert refused.value.data["path"] == "$.options.oci_runtime_flags"
