"""User code raises an arbitrary exception. Its row stores the error with its traceback."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from django_ai.automation import Retry, complete, engine, event_workflow, fail, on_fail, sleep, step, wait, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.story.models import Probe
from tests.support.rows import the_run

pytestmark = pytest.mark.django_db(transaction=True)

ONCE = Retry(max_attempts=1)
SECOND = timedelta(seconds=1)


class Shelf(Exception):
    """An exception that the engine does not know."""


class Picky(BaseModel):
    n: int = 0

    @field_validator("n")
    @classmethod
    def look_up(cls, value: int) -> int:
        if value == 13:
            raise Shelf("no shelf 13")
        return value


def checked(run: WorkflowRun, status: str, *words: str) -> None:
    run.refresh_from_db()
    assert (run.status, run.losses, run.lease) == (status, 0, None)
    for word in ("Traceback", *words):
        assert word in run.error


def another_runs(work) -> None:
    """Check that the error of one row does not affect another row."""

    @workflow("other")
    class Other:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    other = engine.start("other")
    work()
    other.refresh_from_db()
    assert other.status == "completed"


def test_46_create_context(work):
    @event_workflow("probe_ready", name="flow", default_retry=ONCE)
    class Flow:
        Context = Picky

        @classmethod
        def create_context(cls, event):
            raise Shelf("no Context")

        @step(start=True)
        def first(self):
            return complete()

    Probe.objects.create(name="x", ready=True)
    work()
    checked(the_run(name="flow"), "failed", "Shelf: no Context", "create_context")
    another_runs(work)


def test_46_a_validator_of_a_payload_and_the_payload_is_there_after_resume(work, monkeypatch):
    @workflow("flow", default_retry=ONCE)
    class Flow:
        Context = Picky

        @step(start=True)
        def first(self):
            return wait("go", then=self.second)

        @step()
        def second(self):
            return complete()

    run = engine.start("flow")
    work()
    engine.signal("go", {"n": 13}, run=run)
    work()
    checked(run, "failed", "Shelf: no shelf 13", "look_up")
    assert run.data["n"] == 0
    another_runs(work)

    class Mended(BaseModel):
        n: int = 0

    object.__setattr__(Flow.__workflow__, "context", Mended)
    run.resume()
    work()
    run.refresh_from_db()
    assert (run.status, run.data["n"]) == ("completed", 13)


@pytest.mark.parametrize("how", ["returned", "raised"])
def test_46_a_serializer(work, how):
    class Odd(BaseModel):
        n: Any = 0

        def model_dump(self, **options: Any) -> dict[str, Any]:
            if self.n:
                raise Shelf("cannot be written")
            return super().model_dump(**options)

    @workflow("flow", default_retry=ONCE)
    class Flow:
        Context = Odd

        @step(start=True)
        def first(self):
            self.context.n = 1
            if how == "raised":
                raise LookupError("no room")
            return complete()

    run = engine.start("flow")
    work()
    checked(run, "failed", "Shelf: cannot be written", "LookupError: no room" if how == "raised" else "model_dump")
    another_runs(work)


@pytest.mark.parametrize("found", [Shelf("cannot migrate"), {"n": 13}, Picky.model_construct(n=float("nan"))])
def test_46_migrate_context(work, clock, found):
    def declare(version: int, **more: Any) -> None:
        @step(start=True)
        def first(self):
            return sleep(SECOND, then="second")

        @step()
        def second(self):
            return complete()

        body = {"Context": Picky, "first": first, "second": second, "__module__": __name__, "__qualname__": "Flow"}
        workflow("flow", version=version)(type("Flow", (), body | more))

    declare(1)
    run = engine.start("flow")
    work()

    def migrate_context(data, from_version):
        if isinstance(found, Exception):
            raise found
        return found

    from django_ai.automation.workflows import definitions

    definitions.unregister(definitions.find_workflow("flow"))
    declare(2, migrate_context=staticmethod(migrate_context))
    clock.tick(SECOND)
    work()
    checked(run, "parked", "migrate_context")
    another_runs(work)


def test_46_on_fail(work):
    @workflow("flow", default_retry=ONCE)
    class Flow:
        Context = Picky

        @step(start=True)
        def first(self):
            return fail("no room")

        @on_fail
        def sorry(self, error):
            raise Shelf("cannot be told")

    run = engine.start("flow")
    work()
    run.refresh_from_db()
    assert (run.status, run.losses) == ("failed", 0)
    assert run.error.startswith("no room\n\nThen its @on_fail failed:\n\nTraceback")
    assert "Shelf: cannot be told" in run.error
    another_runs(work)
