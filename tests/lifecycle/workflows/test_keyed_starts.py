"""``engine.start(key=..., if_exists=...)``: one run for each key."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from pydantic import BaseModel, ValidationError

from django_ai.automation.conf import conf
from django_ai.automation.exceptions import DefinitionError, RunError, RunExistsError
from django_ai.automation.queues.runtimes.tasks import cleanup_old
from django_ai.automation.workflows.core import complete, engine, get_run, run_subflow, step, wait, workflow
from django_ai.automation.workflows.models import Wait, WorkflowRun
from tests.support.rows import effects, leave, status
from tests.support.workflows import flow

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def waiting():
    """A workflow that waits, so that its runs stay unfinished."""
    return flow(lambda self: wait("bell", then=self.end), "order", end=lambda self: complete())


def runs() -> list[tuple[int, str]]:
    return list(WorkflowRun.objects.order_by("pk").values_list("pk", "status"))


def test_a_second_start_returns_the_first_run_whatever_became_of_it(work):
    first = engine.start("order", key="order:12", n=1)
    assert engine.start("order", key="order:12", n=2).pk == first.pk
    work()
    assert engine.start("order", key="order:12") == first
    engine.signal("bell")
    work()
    again = engine.start("order", key="order:12")
    assert (again.pk, again.status, again.data["n"]) == (first.pk, "completed", 1)
    assert len(runs()) == 1


def test_the_first_start_with_a_key_is_like_any_other(work):
    run = engine.start("order", key="order:12", n=5)
    assert (run.status, run.data["n"], run.event, run.depth) == ("running", 5, None, 0)
    run.refresh_from_db()
    work()
    assert status(run) == "suspended"


def test_each_workflow_and_each_string_has_its_own_key():
    flow(lambda self: complete(), "other", version=2)
    started = [
        engine.start("order", key="12"),
        engine.start("order", key="1 2"),
        engine.start("order", key="ORDER"),
        engine.start("order", key="order"),
        engine.start("other", key="12"),
        engine.start("order"),
        engine.start("order"),
    ]
    assert len({run.pk for run in started}) == 7


def test_a_start_that_is_rolled_back_leaves_the_key_free():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        engine.start("order", key="12")
        raise ZeroDivisionError
    assert runs() == []
    engine.start("order", key="12", if_exists="raise")


def test_raise_names_the_run():
    first = engine.start("order", key="order:12", if_exists="raise")
    with pytest.raises(RunExistsError, match=r"order #\d+ was started with the key 'order:12' and is running") as error:
        engine.start("order", key="order:12", if_exists="raise")
    assert error.value.run == first
    assert isinstance(error.value, RunError)


def test_raise_leaves_the_callers_transaction_usable():
    engine.start("order", key="12")
    with transaction.atomic():
        with pytest.raises(RunExistsError):
            engine.start("order", key="12", if_exists="raise")
        leave("still here")
    assert effects() == ["still here"]


def test_restart_ends_the_unfinished_run_and_starts_another(work):
    first = engine.start("order", key="order:12", n=1)
    work()
    second = engine.start("order", key="order:12", if_exists="restart", n=2)
    first.refresh_from_db()
    assert (first.status, first.error) == ("cancelled", "Restarted with the key 'order:12'.")
    assert first.origin_key is None
    assert not Wait.objects.filter(run=first).exists()
    work()
    engine.signal("bell")
    work()
    assert (status(second), second.data["n"]) == ("completed", 2)
    assert engine.start("order", key="order:12").pk == second.pk


def test_restart_starts_after_one_that_has_ended_and_where_there_is_none(work):
    first = engine.start("order", key="12", if_exists="restart")
    work()
    engine.signal("bell")
    work()
    second = engine.start("order", key="12", if_exists="restart")
    assert [status(first), status(second)] == ["completed", "running"]


def test_restart_ends_children_with_their_parent(work):
    flow(lambda self: run_subflow("order"), "parent", version=2)
    engine.start("parent", key="12")
    work()
    engine.start("parent", key="12", if_exists="restart")
    assert [each for _, each in runs()] == ["cancelled", "cancelled", "running"]


def test_restart_that_is_rolled_back_changes_nothing(work):
    first = engine.start("order", key="12")
    work()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        engine.start("order", key="12", if_exists="restart")
        raise ZeroDivisionError
    assert runs() == [(first.pk, "suspended")]
    assert engine.start("order", key="12").pk == first.pk


def test_restart_with_arguments_that_do_not_fit_ends_nothing(work):
    first = engine.start("order", key="12")
    with pytest.raises(ValidationError):
        engine.start("order", key="12", if_exists="restart", n="many")
    assert runs() == [(first.pk, "running")]


@pytest.mark.parametrize("atomic", [True, False])
def test_a_step_restarts_its_own_run(atomic, work):
    @step(start=True, atomic=atomic)
    def first(self):
        leave(self.context.n)
        if self.context.n < 3:
            engine.start("again", key="12", if_exists="restart", n=self.context.n + 1)
            assert get_run().status == "running"
        return complete()

    class Context(BaseModel):
        n: int

    workflow("again")(type("Again", (), {"Context": Context, "first": first, "__module__": __name__}))
    engine.start("again", key="12", n=1)
    work()
    assert effects() == ["1", "2", "3"]
    assert [each for _, each in runs()] == ["cancelled", "cancelled", "completed"]


def test_the_key_is_free_when_the_run_is_pruned(clock, work):
    first = engine.start("order", key="12")
    work()
    engine.signal("bell")
    work()
    clock.tick(conf().retention("RUNS") + timedelta(days=1))
    cleanup_old()
    assert runs() == []
    assert engine.start("order", key="12").pk != first.pk


@pytest.mark.parametrize("key", ["", 12, None, b"12", "x" * 1001])
def test_a_key_is_a_string(key):
    if key is None:
        with pytest.raises(DefinitionError, match="if_exists='raise' needs key="):
            engine.start("order", key=None, if_exists="raise")
        return
    with pytest.raises(DefinitionError, match=r"key=.* must be a string of 1 to 1000 characters"):
        engine.start("order", key=key)


def test_an_unknown_if_exists_names_the_known_ones():
    with pytest.raises(DefinitionError, match="if_exists='replace' must be one of 'return', 'raise', 'restart'"):
        engine.start("order", key="12", if_exists="replace")
