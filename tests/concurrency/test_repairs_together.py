"""Repairs from outside race with workers, with signals and with each other: one wins, and the other one decides on what
the first has committed."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest

from django_ai.automation.exceptions import StateError
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.core import Retry, complete, engine, get_wake, goto, sleep, wait
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.support.race import together
from tests.support.rows import effects, leave
from tests.support.workflows import flow, run

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
ROUNDS = 8


def kept(raised: list[BaseException]) -> list[BaseException]:
    """Return the exceptions of a race that are no refusals."""
    return [error for error in raised if not isinstance(error, StateError)]


@pytest.mark.slow
def test_two_who_try_now_beside_two_workers_make_one_attempt_for_each_record(work):
    def first(self):
        raise ValueError("down")

    flow(first, retry=Retry(max_attempts=9, base_delay=HOUR))
    for _ in range(ROUNDS):
        pk = run(work).pk
        tries = [partial(engine.try_now, pk)] * 2
        assert kept(together(*tries, drain, drain)) == []
        drain()
        found = WorkflowRun.objects.get(pk=pk)
        tried = found.steps.filter(outcome="try_now").count()
        assert tried in (1, 2)  # the second came while the row was due, or after its attempt
        assert (found.status, found.attempt) == ("waiting", 1 + tried)
        assert found.steps.filter(outcome="error").count() == 1 + tried


@pytest.mark.slow
def test_a_skip_beside_the_signal_and_workers_wakes_the_run_once(work):
    def after(self):
        leave(f"after {self.context.n} {get_wake().reason}")
        return complete()

    flow(lambda self: wait("word", timeout=HOUR, then=self.after, on_timeout=self.after), after=after)
    for number in range(ROUNDS):
        pk = run(work, n=number).pk
        skips = [partial(engine.skip_wait, pk)] * 2
        assert kept(together(*skips, partial(engine.signal, "word", run=pk), drain)) == []
        drain()
        assert WorkflowRun.objects.get(pk=pk).status == "completed"
        assert len([each for each in effects() if each.startswith(f"after {number} ")]) == 1
        assert Signal.unfinished().count() == 0


@pytest.mark.slow
def test_an_edit_and_a_step_beside_it_are_both_kept_or_the_edit_is_refused(work):
    def after(self):
        self.context.n += 1
        return complete()

    flow(lambda self: sleep(HOUR, then=self.after), after=after)
    for number in range(ROUNDS):
        found = run(work, n=number)
        edits = [partial(engine.edit_context, found.pk, {"text": "edited"})]
        raised = together(*edits, partial(engine.skip_wait, found.pk), drain, drain)
        assert kept(raised) == []
        drain()
        found.refresh_from_db()
        was_refused = any("edit_context" in str(error) for error in raised)
        assert (found.status, found.data["n"]) == ("completed", number + 1)
        assert found.data["text"] == ("" if was_refused else "edited")


@pytest.mark.slow
def test_a_rewind_beside_a_worker_that_performs_the_run_keeps_one_of_both(work):
    """A worker whose run is rewound has its write refused, so each visit of the step counts once."""

    def second(self):
        self.context.n += 1
        return sleep(HOUR, then=self.third)

    flow(lambda self: goto(self.second), second=second, third=lambda self: complete())
    for _ in range(ROUNDS):
        found = run(work)
        pk = found.pk
        works = [partial(engine.rewind, pk, 2), partial(engine.rewind, pk, 2), partial(engine.skip_wait, pk)]
        assert kept(together(*works, drain, drain)) == []
        drain()
        found.refresh_from_db()
        assert found.status in ("waiting", "completed")
        assert found.data["n"] == 1
        visits = list(found.steps.filter(outcome__in=["goto", "sleep", "complete"]).values_list("visit", flat=True))
        assert len(visits) == len(set(visits))
        assert found.steps.filter(outcome="rewind").count() == 2


@pytest.mark.slow
def test_two_forks_beside_a_rewind_start_two_runs(work):
    flow(lambda self: wait("word"))
    for _ in range(ROUNDS):
        found = run(work, text="old")
        forks = [partial(engine.fork, found.pk, context={"text": "new"})] * 2
        assert together(*forks, partial(engine.rewind, found.pk, 1), drain) == []
        drain()
        made = WorkflowRun.objects.filter(caused_by=f"workflow:{found.pk}")
        assert [(each.status, each.data["text"]) for each in made] == [("suspended", "new")] * 2
        assert WorkflowRun.objects.get(pk=found.pk).status == "suspended"
