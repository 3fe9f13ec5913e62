"""At every commit of every program, the process dies before it, dies after it, or receives no answer to it.

The final state is the same as without the failure: each database effect occurs once, a crash does not count as a
failed attempt, and no row is parked, forgotten or leased by a dead worker.
"""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from django.db import transaction

from django_ai.automation.queues import drain as drain_module
from django_ai.automation.queues import positions
from tests.support.crash_cancellations import CANCELLATIONS
from tests.support.crash_endings import ENDINGS
from tests.support.crash_limits import LIMITS
from tests.support.crash_points import (
    MODES,
    UNANSWERED,
    Program,
    differences,
    picture,
    recover,
    run_in_child,
    wipe,
)
from tests.support.crash_programs import PROGRAMS
from tests.support.crash_programs_emitted import EMITTED, WEBHOOKS
from tests.support.crash_programs_of_runs import CHOICES, PATHS, REPLACEMENTS
from tests.support.crash_programs_queues import BULK, LANES, PAUSES
from tests.support.crash_transitions import TRANSITIONS
from tests.support.crash_windows import WINDOWS
from tests.support.crash_zones import ZONES
from tests.support.more_crash_programs import MORE_PROGRAMS

EVERYTHING = [
    *PROGRAMS,
    TRANSITIONS,
    *ENDINGS,
    WINDOWS,
    *MORE_PROGRAMS,
    CHOICES,
    PATHS,
    REPLACEMENTS,
    EMITTED,
    WEBHOOKS,
    LANES,
    PAUSES,
    BULK,
    LIMITS,
    CANCELLATIONS,
    ZONES,
]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture
def unhurried(clock, monkeypatch, settings):
    """Make programs independent of real time, so that each run of a program makes the same commits."""
    clock.noon = clock.now
    settings.AUTOMATION = {**settings.AUTOMATION, "DRAIN_BUDGET": timedelta(minutes=10)}
    monkeypatch.setattr(drain_module, "_batch_size", lambda model: 20)
    with transaction.atomic():
        positions.allocate(1)  # so that the first run finds a bound, too, and writes the same statements
    return clock


SHARE = os.environ.get("CRASH_POINTS", "all")
"""Which points to test: ``all``, ``none``, or ``0/3``, ``1/3``, ``2/3``: each point in one of the three modes.

The number selects the mode of each point. With ``9/27`` every ninth point is tested, in one of the modes: the gate
gives each of three databases another ninth.
"""


def chosen(points: list[str], mode: str) -> list[str]:
    """Return the points that this run tests in ``mode``."""
    if SHARE == "all":
        return points
    number, of = map(int, SHARE.split("/"))
    return [point for at, point in enumerate(points) if (at + number) % of == MODES.index(mode)]


@pytest.mark.skipif(SHARE == "none", reason="CRASH_POINTS=none: the gate tests the crash points with its own Python")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("program", EVERYTHING, ids=lambda program: program.name)
def test_every_commit(program, mode, unhurried):
    clock = unhurried
    program.declare()
    undisturbed = run_in_child(program, clock)
    assert undisturbed.error == ""
    go_on_to_the_end(program, clock)
    expected = picture()
    assert expected["effects"] == [*program.effects]
    assert (expected["leased"], expected["due"]) == ([], [])
    failures = []
    for point in chosen(undisturbed.points, mode):
        wipe()
        clock.now = clock.noon
        child = run_in_child(program, clock, point, mode)
        if mode == UNANSWERED:
            problem = child.error
        else:
            problem = "" if child.killed else f"was not reached. {child.error}"
            clock.now = clock.noon + program.acts[child.act].at
            program.run(clock, child.act)
        go_on_to_the_end(program, clock)
        problem = problem or differences(expected, picture())
        if problem:
            failures.append(f"{mode} {point} (act {child.act}):\n{problem}")
    assert not failures, f"{len(failures)} of {len(undisturbed.points)} points:\n" + "\n".join(failures)


def go_on_to_the_end(program: Program, clock) -> None:
    clock.now = clock.noon + program.acts[-1].at + timedelta(hours=1)
    recover(clock)
