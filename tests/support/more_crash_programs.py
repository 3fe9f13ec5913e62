"""More programs whose crash points are tested: starts with a key, and the baseline of a table with rows.

``MORE_PROGRAMS`` has them all.
"""

from __future__ import annotations

from io import StringIO

from django.core.management import call_command

from django_ai.automation import complete, engine, on_event, step, wait, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.crash_points import Program, web, work
from tests.support.crash_programs import STAY, Word, signalled
from tests.support.rows import leave

# -- starts with a key -------------------------------------------------------------------------------------------------


def keyed() -> None:
    @workflow("keyed")
    class Keyed:
        Context = Word

        @step(start=True)
        def begin(self):
            leave(f"begin {self.context.word}")
            engine.start("once", key="from a step", word=self.context.word)
            return wait("bell", then=self.end)

        @step()
        def end(self):
            leave(f"end {self.context.word}")
            return complete()

    @workflow("once")
    class Once:
        Context = Word

        @step(start=True)
        def begin(self):
            leave(f"once {self.context.word}")
            return complete()


def restarted(word: str) -> None:
    if not any(run.data["word"] == word for run in WorkflowRun.objects.filter(name="keyed")):
        engine.start("keyed", key="12", if_exists="restart", word=word)


KEYED = Program(
    "keyed",
    keyed,
    [
        web(lambda: engine.start("keyed", key="12", word="one")),  # made again, it is still one run
        work(),
        web(lambda: restarted("two"), 0.5),
        work(1),
        web(lambda: signalled("bell"), 1.5),
        work(2),
        web(lambda: engine.start("keyed", key="12", word="three"), 2.5),
        work(3),
    ],
    ["begin one", "begin two", "end bell", "once one"],
)


# -- the baseline ------------------------------------------------------------------------------------------------------


def adopting() -> None:
    @on_event("reservation_confirmed", name="welcome")
    def welcome(event):
        leave(f"welcome {event.entity_id}")


def old_stays() -> None:
    if not Reservation.objects.exists():
        states = ["confirmed", "confirmed", "pending", "confirmed", "pending"]
        rows = [Reservation(pk=STAY + number, status=state) for number, state in enumerate(states)]
        Reservation.objects.bulk_create(rows)


def baseline() -> None:
    call_command("automation_baseline", "--model", "app.Reservation", batch=1, stdout=StringIO(), stderr=StringIO())


def saved(number: int) -> None:
    stay = Reservation.objects.get(pk=STAY + number)
    stay.status = "confirmed"
    stay.save()


BASELINE = Program(
    "baseline",
    adopting,
    [
        web(old_stays),
        web(baseline),
        web(lambda: saved(0), 0.5),  # it was confirmed before
        web(lambda: saved(2), 0.5),
        work(1),
        web(baseline, 1.5),
        work(2),
    ],
    [f"welcome {STAY + 2}"],
)

MORE_PROGRAMS = [KEYED, BASELINE]
