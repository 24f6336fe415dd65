"""Membership of a process tree: the ties one by one, then laws over any process table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastclaw.linux.tree import ProcessTable, Row


def row(
    pid: int, ppid: int = 1, *, pgrp: int = 0, session: int = 0, start: int = 100, marker: str | None = None
) -> Row:
    return Row(pid, ppid, pgrp, session, start, marker)


def members(*rows: Row, **how: object) -> set[int]:
    return ProcessTable(rows).members("m", **how)  # type: ignore[arg-type]  # a test's shorthand


def test_descendants_of_a_root() -> None:
    assert members(row(10), row(11, 10), row(12, 11), row(13), roots=[10]) == {10, 11, 12}


def test_the_marker_finds_an_orphan_and_its_descendants() -> None:
    assert members(row(20, marker="m"), row(21, 20), row(22, marker="other")) == {20, 21}


def test_session_and_group_led_by_a_member() -> None:
    table = [row(10), row(30, session=10), row(31, pgrp=10), row(32, session=11)]
    assert members(*table, roots=[10]) == {10, 30, 31}


def test_a_session_that_a_member_is_in_but_does_not_lead_is_not_taken() -> None:
    assert members(row(10, session=5), row(11, session=5), roots=[10]) == {10}


def test_roots_that_are_gone_are_ignored() -> None:
    assert members(row(10), roots=[99]) == set()


def test_protected_and_init_are_never_members_nor_passed_through() -> None:
    table = [row(1, 0, session=10), row(10), row(11, 10), row(12, 11)]
    assert members(*table, roots=[10, 1], protected=[11]) == {10}


def test_survivors_of_a_dead_leader_are_found_by_their_age() -> None:
    table = [row(40, session=10, start=100), row(41, session=10, start=900)]
    assert members(*table, led={10: 500}) == {40, 41}


def test_a_number_given_out_anew_is_not_taken_for_the_dead_leader() -> None:
    table = [row(10, session=10, start=600), row(40, session=10, start=601)]
    assert members(*table, led={10: 500}) == set()


def test_ancestors_end_at_a_parent_outside_the_snapshot() -> None:
    table = ProcessTable([row(5, 4), row(6, 5), row(7, 6)])
    assert table.ancestors(7) == {7, 6, 5}
    assert table.ancestors(99) == set()


pids = st.integers(1, 30)
rows = st.builds(Row, pids, st.integers(0, 30), pids, pids, st.integers(0, 5), st.sampled_from([None, "m", "other"]))
tables = st.lists(rows, unique_by=lambda one: one.pid, max_size=30)
some = st.sets(pids, max_size=4)


@given(tables, some, some)
def test_members_are_closed_and_never_protected(table: list[Row], roots: set[int], protected: set[int]) -> None:
    found = members(*table, roots=roots, protected=protected)
    allowed = {one.pid for one in table} - protected - {1}
    assert found <= allowed
    for one in table:
        tied = found & {one.ppid, one.pgrp, one.session} or one.marker == "m" or one.pid in roots
        if one.pid in allowed and tied:
            assert one.pid in found


@given(tables, some)
def test_everybody_is_in_for_a_reason(table: list[Row], roots: set[int]) -> None:
    found = members(*table, roots=roots)
    for one in table:
        if one.pid in found:
            tied = found & {one.ppid, one.pgrp, one.session} - {one.pid}
            assert tied or one.marker == "m" or one.pid in roots


@given(tables, some, some)
def test_more_roots_never_mean_fewer_members(table: list[Row], roots: set[int], more: set[int]) -> None:
    assert members(*table, roots=roots) <= members(*table, roots=roots | more)


@given(tables)
def test_ancestors_terminate_on_any_table(table: list[Row]) -> None:
    snapshot = ProcessTable(table)
    for one in table:
        assert one.pid in snapshot.ancestors(one.pid)
