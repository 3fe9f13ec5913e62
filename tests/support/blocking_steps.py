"""Steps that block until the test releases them, and assertions about their runs."""

from __future__ import annotations

import contextlib
import threading

from django.db import DatabaseError, connection, transaction
from pydantic import BaseModel

from django_ai.automation import Retry, complete, engine, goto, step, workflow
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.polling import until
from tests.support.race import OtherThread
from tests.support.rows import effects, leave


class Gate:
    """A point where a step blocks until the test opens it. ``session``: the blocked worker's database session."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.session = 0

    def pass_through(self) -> None:
        if connection.vendor != "sqlite":
            self.session = session_of_this_thread()
        self.reached.set()
        assert self.opened.wait(30)

    def wait_until_reached(self) -> None:
        assert self.reached.wait(20)

    def workflow(gate) -> None:
        """Declare "gated": its step writes, blocks here at its first attempt, and writes again. It is not retried."""

        @workflow("gated", default_retry=Retry(max_attempts=1))
        class Gated:
            class Context(BaseModel):
                tries: int = 0
                atomic: bool = True

            @step(start=True)
            def begin(self):
                return goto(self.inside if self.context.atomic else self.outside)

            @step()
            def inside(self):
                return self._work()

            @step(atomic=False)
            def outside(self):
                return self._work()

            def _work(self):
                self.context.tries += 1
                if self.context.atomic:
                    leave("first")
                if not gate.reached.is_set():
                    gate.pass_through()
                leave("second")
                return complete()

    def locker(gate, first: int, second: int) -> None:
        """Declare "locker": its step updates one row, blocks here at its first attempt, and updates the other."""

        @workflow("locker", default_retry=Retry(max_attempts=1))
        class Locker:
            class Context(BaseModel):
                tries: int = 0

            @step(start=True)
            def work(self):
                self.context.tries += 1
                Reservation.objects.filter(pk=first).update(note="step")
                leave("first")
                if not gate.reached.is_set():
                    gate.pass_through()
                Reservation.objects.filter(pk=second).update(note="step")
                leave("second")
                return complete()


def assert_a_lock_timeout_costs_no_try(row: int, timeout: str) -> None:
    """Assert that a lock timeout, set with the SQL ``timeout``, costs no attempt. A web process holds the lock."""

    @workflow("impatient", default_retry=Retry(max_attempts=1))
    class Impatient:
        class Context(BaseModel):
            tries: int = 0

        @step(start=True)
        def work(self):
            self.context.tries += 1
            leave("first")
            with connection.cursor() as cursor:
                cursor.execute(timeout)
            Reservation.objects.filter(pk=row).update(note="step")
            leave("second")
            return complete()

    run = engine.start("impatient")
    with transaction.atomic():
        Reservation.objects.filter(pk=row).update(note="web")
        OtherThread(drain).join()
    run.refresh_from_db()
    assert (run.attempt, run.losses, effects()) == (0, 0, [])
    drain(run.wake_at)
    run.refresh_from_db()
    assert_done_once(run)


def session_of_this_thread() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()" if connection.vendor == "postgresql" else "SELECT connection_id()")
        return int(cursor.fetchone()[0])


def finish(run: WorkflowRun, seconds: float = 60) -> None:
    """Drain as a worker's loop does, despite database errors, until the run has finished."""

    def ended() -> bool:
        with contextlib.suppress(DatabaseError):
            drain()
            run.refresh_from_db()
            return run.is_finished
        return False

    until(ended, seconds, "The end of the run")


def assert_done_once(run: WorkflowRun, atomic: bool = True) -> None:
    """Assert that the step used up no attempt, and that each of its effects exists exactly once."""
    assert (run.status, run.attempt, run.data["tries"]) == ("completed", 0, 1), run.error
    assert effects() == (["first", "second"] if atomic else ["second"])
    assert "error" not in {each.outcome for each in run.steps.all()}
