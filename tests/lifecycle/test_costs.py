"""What the hot operations cost in the database: statements, rows, records and bytes of the log, never seconds.

Each number is a decision. A change that needs one more statement, one more index entry or a wider row fails here: it
avoids that, or changes the number and says why it is worth it. A change that needs less lowers the number.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from django.db import connection, transaction
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.models import CallbackExecution
from django_ai.automation.queues import claim as claiming
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.positions import allocate
from django_ai.automation.queues.wakeable import Wakeable
from django_ai.automation.workflows.core import complete, engine, event_workflow, step, wait
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Effect, Reservation, Ticket
from tests.support.statement_costs import Cost, fill, least
from tests.support.workflows import flow

pytestmark = pytest.mark.django_db(transaction=True)

ROOM = 16
"""By how many bytes an operation may exceed its number: a string with the key of a row is longer after many tests."""


TIMES = 14
"""How often an operation is counted, so that each statement once finds pages with room for what it writes."""


class Budget(NamedTuple):
    """What an operation may cost.

    ``statements``: on PostgreSQL, SQLite and MariaDB, without BEGIN and COMMIT. ``commits``: on all. ``rows``: that
    PostgreSQL and MariaDB read at most; MariaDB has two plans for a delivery, and chooses by random samples.
    ``records`` and ``size``: those of the write-ahead log of PostgreSQL, and their bytes. ``updates``: of rows, and how
    many of them needed no new index entries (HOT).
    """

    statements: tuple[int, int, int]
    commits: int = 1
    rows: tuple[int, int] = (0, 0)
    records: int = 0
    size: int = 0
    updates: tuple[int, int] = (0, 0)


BUDGETS = {
    "a save of a new model with two events": Budget((2, 2, 2), records=16, size=1644),
    "a save that changes nothing": Budget((2, 2, 2), rows=(3, 3), records=1, size=68, updates=(1, 1)),
    "a save whose event starts a run": Budget(
        (9, 12, 13), commits=4, rows=(7, 15), records=45, size=4800, updates=(3, 0)
    ),
    "a save whose event calls a callback": Budget(
        (9, 11, 12), commits=4, rows=(4, 12), records=57, size=5748, updates=(3, 0)
    ),
    "a callback": Budget((2, 2, 2), rows=(2, 2), records=5, size=496, updates=(1, 0)),
    "a start": Budget((1, 2, 2), rows=(1, 2), records=5, size=534),
    "a claim": Budget((1, 1, 2), rows=(2, 3), records=6, size=443, updates=(1, 0)),
    "a step": Budget((1, 2, 2), rows=(1, 1), records=8, size=935, updates=(1, 0)),
    "a step that writes": Budget((2, 3, 3), rows=(1, 1), records=10, size=1078, updates=(1, 0)),
    "a step that waits": Budget((4, 6, 6), commits=2, rows=(2, 5), records=16, size=1548, updates=(2, 0)),
    "a signal": Budget((1, 1, 1), records=4, size=305),
    "the delivery of a signal": Budget((4, 5, 5), rows=(7, 20), records=12, size=1101, updates=(2, 0)),
    "a step of a run that was woken": Budget((2, 3, 3), rows=(2, 2), records=9, size=1116, updates=(1, 0)),
    "a look for due rows": Budget((1, 1, 1), commits=0, rows=(4, 12)),
}


def writing(self):
    Effect.objects.create(name="x")
    return complete()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cost]:
    """``counted(operation)``: what one of ``BUDGETS`` costs."""
    monkeypatch.setattr(claiming, "_process_name", lambda pid: "worker:12345")  # its length is in the log
    flow(lambda self: complete(), "plain")
    flow(writing, "writes")
    flow(lambda self: wait("bell", then=self.end), "waits", end=lambda self: complete())

    @event_workflow("ticket_closed", name="for a ticket")
    class ForATicket:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return complete()

    @on_event("reservation_confirmed", name="of a reservation")
    def listen(event):
        pass

    claimed: list[Wakeable] = []
    date = timezone.now() + timedelta(days=9)
    saved: list[Ticket] = []

    def claim_one(model: type[Wakeable], *before: Callable[[], Any]) -> Callable[[], None]:
        """Return what claims the one row that is due after ``before``."""

        def prepare() -> None:
            WorkflowRun.objects.unfinished().delete()
            for each in before:
                each()
            claimed[:] = claim(model, timezone.now(), 20)
            assert len(claimed) == 1, claimed

        return prepare

    def save() -> None:
        saved[:] = [Ticket.objects.create(due_at=date)]

    def start(name: str) -> Callable[[], Any]:
        return lambda: engine.start(name)

    def end_all_and_start_one() -> None:
        drain()
        engine.start("plain")

    def perform() -> None:
        claimed[0].perform(timezone.now)

    def confirm() -> None:
        Reservation.objects.create(status="confirmed")

    def signal() -> None:
        engine.signal("bell")

    def wake() -> None:
        engine.start("waits")
        drain()
        engine.signal("bell")
        (sent,) = claim(Signal, timezone.now(), 20)
        sent.perform(timezone.now)

    operations: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "a save of a new model with two events": (save, drain),
        "a save that changes nothing": (lambda: saved[0].save(), save),
        "a save whose event starts a run": (lambda: Ticket.objects.create(open=False), drain),
        "a save whose event calls a callback": (confirm, drain),
        "a callback": (perform, claim_one(CallbackExecution, confirm)),
        "a start": (start("plain"), drain),
        "a claim": (lambda: claim(WorkflowRun, timezone.now(), 20), end_all_and_start_one),
        "a step": (perform, claim_one(WorkflowRun, start("plain"))),
        "a step that writes": (perform, claim_one(WorkflowRun, start("writes"))),
        "a step that waits": (perform, claim_one(WorkflowRun, start("waits"))),
        "a signal": (signal, drain),
        "the delivery of a signal": (perform, claim_one(Signal, start("waits"), drain, signal)),
        "a step of a run that was woken": (perform, claim_one(WorkflowRun, wake)),
        "a look for due rows": (drain, drain),
    }

    def count(name: str, **options: int) -> Cost:
        operation, prepare = operations[name]
        with transaction.atomic():
            allocate(1)
        drain()
        return least(operation, prepare, **options)

    return count


@pytest.mark.parametrize("name", BUDGETS)
def test_an_operation_takes_no_more_statements(name, counted):
    cost, budget = counted(name), BUDGETS[name]
    expected = dict(zip(("postgresql", "sqlite", "mysql"), budget.statements, strict=True))[connection.vendor]
    assert (len(cost.statements), cost.commits) == (expected, budget.commits), cost.statements


@pytest.mark.slow
def test_among_many_rows_operations_read_no_more_and_log_no_more(counted):
    fill()
    costs = {name: counted(name, times=TIMES, among=7) for name in BUDGETS}
    assert not {name: cost.scanned for name, cost in costs.items() if cost.scanned}
    if connection.vendor == "postgresql":
        log = {name: (cost.total("records"), cost.total("updates"), cost.total("hot")) for name, cost in costs.items()}
        assert log == {name: (budget.records, *budget.updates) for name, budget in BUDGETS.items()}
    for name, budget in BUDGETS.items():
        rows = dict(zip(("postgresql", "mysql"), budget.rows, strict=True)).get(connection.vendor, 0)
        assert costs[name].total("rows") <= rows, (name, costs[name])
        assert costs[name].total("size") <= budget.size + ROOM, (name, costs[name])
