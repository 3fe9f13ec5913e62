"""The model of the soak finds what is lost, what comes twice and what is early: schedules, crates and visits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.soak.crate_writes import ROLLED_BACK
from tests.support.soak.crates import of_crates
from tests.support.soak.ticking import EACH, LATEST, OWNERS, TICK, of_schedules
from tests.support.soak.visits import AHEAD, of_visits, on_the_wall
from tests.support.soak.world import Deed, Effect, Milestone, Occurrence, Ticking, World

START = datetime(2030, 1, 7, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def world(
    deeds: Sequence[Deed] = (), effects: Sequence[Effect] = (), milestones: Sequence[Milestone] = (), **options: Any
) -> World:
    occurred = [
        Occurrence(effect.owner.partition(":")[0], effect.key, effect.serial or 0, effect.at)
        for effect in effects
        if not effect.key.endswith("cancelled")
    ]
    given = {"now": at(60), "slack": 2 * SECOND, **options}
    return World(deeds, effects, [], occurred, milestones, **given)


# -- schedules ---------------------------------------------------------------------------------------------------------

TIMES = range(1, 30)
"""The numbers of the times in the minute that the schedules have ticked; the thirtieth has just come."""


def ticking(name: str, performed: Iterable[int], late: dict[int, float] | None = None, **row: Any) -> list[str]:
    """Return what the model finds if ``name`` performed these times (the other schedule is faultless), some of them
    ``late`` by so many seconds."""
    numbers = {each: list(TIMES) for each in OWNERS} | {name: list(performed)}
    effects = [
        Effect(
            OWNERS[each],
            (START + number * TICK).isoformat(),
            None,
            START + number * TICK + (late or {}).get(number, 0) * SECOND,
        )
        for each, found in numbers.items()
        for number in found
    ]
    rows = {each: Ticking(START, at(59), len(set(TIMES) & {*found}), 0) for each, found in numbers.items()}
    rows[name] = Ticking(**{**vars(rows[name]), **row})
    return list(of_schedules(world(effects=effects, schedules=rows, since=START)))


@pytest.mark.parametrize("name", OWNERS)
def test_a_schedule_that_ticks_is_right(name):
    assert ticking(name, TIMES) == []


def test_a_schedule_that_has_no_row_never_ticked():
    assert list(of_schedules(world(since=START))) == [
        "schedule soak:tick: no worker has inserted its row",
        "schedule soak:latest: no worker has inserted its row",
    ]


@pytest.mark.parametrize("name", OWNERS)
def test_a_schedule_that_begins_late_is_found(name):
    assert any("it began at" in said for said in ticking(name, TIMES, anchor=at(40)))


@pytest.mark.parametrize("name", OWNERS)
def test_a_schedule_that_never_ticks_is_found(name):
    assert ticking(name, [], reached=START) != []


def test_each_time_that_is_lost_is_found():
    lost = [number for number in TIMES if number != 9]
    assert "schedule soak:tick: 1 of 28 times were lost: 12:00:18.000000" in ticking(EACH, lost, skipped=1)


def test_a_time_that_came_twice_is_found():
    assert ticking(EACH, [*TIMES, 9]) == ["schedule soak:tick: 12:00:18.000000 came more than once"]


def test_a_time_that_does_not_exist_is_found():
    assert any("are no times of it" in said for said in ticking(EACH, [*TIMES, 9.5]))  # type: ignore[list-item]


def test_an_outage_leaves_out_all_but_the_last_two_times():
    left = [number for number in TIMES if not 9 <= number < 15]
    assert ticking(LATEST, left, {15: 2.5, 16: 0.5}, skipped=6) == []


def test_a_time_that_was_left_out_without_an_outage_is_found():
    left = [number for number in TIMES if number != 9]
    found = ticking(LATEST, left, {10: 0.5, 11: 0.1}, skipped=1)
    assert len(found) == 1
    assert "was left out, although" in found[0]


def test_a_time_that_was_to_be_made_up_for_and_was_not_is_found():
    left = [number for number in TIMES if not 9 <= number < 16]
    found = ticking(LATEST, left, {16: 0.5}, skipped=7)
    assert len(found) == 1
    assert "was left out, although" in found[0]


def test_a_schedule_that_stopped_ticking_is_found():
    assert any("were not both performed" in said for said in ticking(LATEST, range(1, 20), reached=at(39)))
    assert any("9 of 28 times were lost" in said for said in ticking(EACH, range(1, 20), reached=at(39)))


def test_a_time_that_was_fired_and_not_performed_is_found():
    assert any("it was fired 35 times, and performed 29 times" in said for said in ticking(EACH, TIMES, fired=35))


# -- crates ------------------------------------------------------------------------------------------------------------

VALUES = {"is_open": True, "due_at": at(20)}


def stocked(name: str = "c0.0") -> Deed:
    return Deed(0, "stock", "c0", at(0), at(0.1), {"names": [name], "how": "sql", "values": VALUES}, 1)


def restocked(number: int, second: float, how: str = "update", touch: bool = True, **values: Any) -> Deed:
    detail = {"names": ["c0.0"], "how": how, "touch": touch, "values": values}
    return Deed(number, "restock", "c0", at(second), at(second + 0.1), detail, 1)


def dropped(second: float) -> Deed:
    return Deed(9, "drop", "c0", at(second), at(second + 0.1), {"names": ["c0.0"], "how": "raw"}, 1)


def calls(*keys: str) -> list[Effect]:
    """Return the effects of calls: ``key`` or ``key old to new``."""
    found = []
    for serial, each in enumerate(keys):
        key, _, change = each.partition("|")
        found.append(Effect("c0.0:crate", key, serial, at(30), None, change))
    return found


DUE = ("crate_due", "crate_due+")
DEEDS = [stocked(), restocked(1, 1), restocked(2, 2, is_open=False)]
RIGHT = ("crate_made", *DUE, "crate_written", "crate_written", "crate_closed", "crate_touched|0 to 1")
RIGHT += ("crate_touched|1 to 2",)


def test_a_crate_whose_writes_came_once_each_is_right():
    assert list(of_crates(world(DEEDS, calls(*RIGHT)))) == []


@pytest.mark.parametrize("missing", range(len(RIGHT)))
def test_a_captured_occurrence_that_is_lost_is_found(missing):
    assert list(of_crates(world(DEEDS, calls(*RIGHT[:missing], *RIGHT[missing + 1 :])))) != []


@pytest.mark.parametrize("twice", range(len(RIGHT)))
def test_a_captured_occurrence_that_came_twice_is_found(twice):
    assert list(of_crates(world(DEEDS, calls(*RIGHT, RIGHT[twice])))) != []


def test_a_call_that_came_twice_for_one_event_is_found():
    effects = calls(*RIGHT)
    assert "crate c0.0: crate_made of event 0 was called 2 times" in list(
        of_crates(world(DEEDS, [*effects, effects[0]]))
    )


def test_what_was_rolled_back_does_not_count():
    deeds = [*DEEDS, restocked(3, 3, ROLLED_BACK)]
    assert list(of_crates(world(deeds, calls(*RIGHT)))) == []
    assert list(of_crates(world(deeds, calls(*RIGHT, "crate_written", "crate_touched|2 to 3")))) != []


def test_what_a_step_has_written_counts():
    step = Effect("c0.0:steps", "stocked", None, at(3))
    assert list(of_crates(world(DEEDS, [*calls(*RIGHT), step]))) != []
    effects = [*calls(*RIGHT, "crate_written", "crate_touched|2 to 3"), step]
    assert list(of_crates(world(DEEDS, effects))) == []


def test_a_touch_with_the_change_of_another_is_found():
    wrong = ["crate_touched|0 to 2" if each == "crate_touched|1 to 2" else each for each in RIGHT]
    assert list(of_crates(world(DEEDS, calls(*wrong)))) != []


def test_a_deletion_cancels_what_was_pending():
    deeds = [*DEEDS, dropped(3)]
    assert list(of_crates(world(deeds, calls(*RIGHT)))) != []
    assert list(of_crates(world(deeds, calls(*RIGHT, "crate_gone")))) == []
    cancelled = [f"{each} cancelled" if each == "crate_closed" else each for each in RIGHT if each not in DUE]
    assert list(of_crates(world(deeds, calls(*cancelled, "crate_gone", "crate_due cancelled")))) == []
    assert list(of_crates(world(DEEDS, calls(*cancelled, *DUE)))) != []


def test_a_write_that_reached_no_row_is_found():
    wrote_nothing = Deed(1, "restock", "c0", at(1), at(1.1), restocked(1, 1).detail, 0)
    assert "crate c0: restock update wrote to 0 rows" in list(of_crates(world([stocked(), wrote_nothing])))


def test_a_captured_write_that_is_not_recorded_is_found():
    assert list(of_crates(world(outbox=1))) == ["1 captured writes were not recorded"]


@pytest.mark.parametrize(("fired", "is_right"), [(20, True), (19.9, False), (10.2, True), (15, True), (16.5, False)])
def test_a_date_that_was_not_in_force_is_early(fired, is_right):
    """The date is at 20 s, from 5 to 16 s it is at 10 s."""
    deeds = [stocked(), restocked(1, 5, due_at=at(10), touch=False), restocked(2, 16, due_at=at(20), touch=False)]
    milestones = [Milestone("c0.0:crate", "crate_due", 1, at(fired), "")]
    found = list(of_crates(world(deeds, calls("crate_made", *DUE, *["crate_written"] * 2), milestones)))
    assert (found == []) is is_right


# -- visits ------------------------------------------------------------------------------------------------------------


def hall(number: int, zone: str) -> Deed:
    return Deed(number, "hall", "h1", at(number), at(number + 0.1), {"zone": zone}, True)


def visit(number: int, due: float, zone: str) -> Deed:
    """Return the deed after which the milestone is due at the second ``due`` while the hall is in ``zone``."""
    start = on_the_wall(at(due), AHEAD, zone)
    return Deed(number, "visit", "v1", at(number), at(number + 0.1), {"hall": "h1", "start": start}, True)


def visited(deeds: Sequence[Deed], fired: float | None, calls: int = 1) -> list[str]:
    effects = [Effect("v1:visit", key, 1, at(30)) for key in ("ahead", "planned")] * calls
    milestones = [] if fired is None else [Milestone("v1:visit", "ahead", 1, at(fired), "")]
    return list(of_visits(world(deeds, effects, milestones, slack=SECOND)))


BERLIN, TOKYO = "Europe/Berlin", "Asia/Tokyo"


def test_days_count_on_the_wall_clock():
    assert on_the_wall(datetime(2030, 1, 7, 12, tzinfo=UTC), AHEAD, BERLIN) == datetime(2030, 7, 8, 11, tzinfo=UTC)
    assert on_the_wall(datetime(2030, 1, 7, 12, tzinfo=UTC), AHEAD, TOKYO) == datetime(2030, 7, 8, 12, tzinfo=UTC)
    assert on_the_wall(datetime(2030, 7, 8, 11, tzinfo=UTC), -AHEAD, BERLIN) == datetime(2030, 1, 7, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("fired", "calls", "is_right"), [(10, 1, True), (9.9, 1, False), (10, 2, False), (None, 0, False)]
)
def test_a_visit_is_due_on_the_wall_clock_of_its_hall_once(fired, calls, is_right):
    assert (visited([hall(0, BERLIN), visit(1, 10, BERLIN)], fired, calls) == []) is is_right


@pytest.mark.parametrize(("fired", "calls", "is_right"), [(None, 0, True), (10, 1, False)])
def test_a_visit_whose_hall_has_moved_is_due_an_hour_later(fired, calls, is_right):
    deeds = [hall(0, TOKYO), visit(1, 10, TOKYO), hall(2, BERLIN)]
    assert (visited(deeds, fired, calls) == []) is is_right


@pytest.mark.parametrize(("fired", "is_right"), [(3, True), (2.5, True), (1, False)])
def test_a_visit_that_is_past_in_the_new_zone_is_due_at_once(fired, is_right):
    deeds = [hall(0, BERLIN), visit(1, 10, BERLIN), hall(3, TOKYO)]
    assert (visited(deeds, fired) == []) is is_right
