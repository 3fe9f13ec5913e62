"""From the first released schema to the newest with rows in every table, there and back; and old code on new tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, models
from django.db.migrations.executor import MigrationExecutor
from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    agent,
    complete,
    engine,
    event_workflow,
    handler,
    on_event,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.events import claims
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.tasks import poll_due
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.app.models import Reservation
from tests.desk.looking import book, change
from tests.lifecycle.looking import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
FIRST = [
    ("automation_events", "0001_initial"),
    ("automation_workflows", "0001_initial"),
    ("automation_agents", "0001_initial"),
]


def migrate(targets: list[Any]) -> Any:
    """Migrate and return the historical models of that state."""
    executor = MigrationExecutor(connection)
    executor.migrate(targets)
    return MigrationExecutor(connection).loader.project_state([each for each in targets if each[1]]).apps


def newest() -> list[Any]:
    labels = {label for label, _ in FIRST} | {"automation_queues"}
    return [node for node in MigrationExecutor(connection).loader.graph.leaf_nodes() if node[0] in labels]


def first() -> list[Any]:
    later = [("automation_queues", None)] if any(label == "automation_queues" for label, _ in newest()) else []
    return [*FIRST, *later]


@pytest.fixture
def first_schema() -> Iterator[Any]:
    """Put the schema back to the newest at the end, whatever happened."""
    yield lambda: migrate(first())
    migrate(newest())


class Text(BaseModel):
    text: str = ""


class OfEntity(BaseModel):
    entity_id: str = ""
    tries: int = 0


def declare_all() -> None:
    @on_event("reservation_confirmed", name="hotel.greet")
    def greet(event):
        leave(f"greet {event.entity.pk}")

    @on_event("reservation_confirmed", name="hotel.gone")
    def gone(event):
        leave("gone callback")

    @workflow("naps")
    class Naps:
        Context = Text

        @step(start=True)
        def begin(self):
            return sleep(HOUR, then=self.end)

        @step()
        def end(self):
            leave(f"nap {self.context.text}".strip())
            return complete()

    @workflow("waits")
    class Waits:
        Context = Text

        @step(start=True)
        def begin(self):
            return wait("go", then=self.end)

        @step()
        def end(self):
            leave("signalled")
            return complete()

    @workflow("waits_for_event")
    class WaitsForEvent:
        Context = Text

        @step(start=True)
        def begin(self):
            claims.hold("message_received", match={"sender_id": 7})
            return wait_for_event("booking_noted", match={"note": "papers"}, then=self.end)

        @step()
        def end(self):
            leave("papers came")
            return complete()

    @workflow("fails", default_retry=Retry(max_attempts=1))
    class Fails:
        Context = Text

        @step(start=True)
        def begin(self):
            if not Reservation.objects.filter(note="mended").exists():
                raise RuntimeError("broken")
            leave("mended")
            return complete()

    @event_workflow("checkin_due", offset=-HOUR, name="planned")
    class Planned:
        Context = OfEntity

        @step(start=True)
        def begin(self):
            leave(f"planned {self.context.entity_id}")
            return complete()

    @agent("desk", spawn_on="booking_created", match={"id": "{{ ctx.entity_id }}"}, singleton=True)
    class Desk:
        Context = OfEntity

        @handler("booking_noted", retry=Retry(max_attempts=5, base_delay=HOUR, max_delay=HOUR))
        def noted(self, ctx, event):
            ctx.tries += 1
            if ctx.tries == 1:
                raise RuntimeError("not yet")
            leave(f"noted {event.entity_id}")

        @handler("booking_confirmed")
        def confirmed(self, event):
            leave(f"confirmed {event.entity_id}")


def test_rows_of_the_first_release_go_on_after_the_upgrade(clock, work, first_schema):
    declare_all()
    booking = book()
    runs = {name: engine.start(name) for name in ("naps", "waits", "waits_for_event", "fails")}
    lost = engine.start("naps", text="of a class that was gone")
    broken = engine.start("naps", text="whose worker was killed")
    work()
    change(booking, note="x")
    work()  # its handler fails, and is to be tried again in an hour
    change(booking, status="confirmed")  # waits in the mailbox
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + 5 * HOUR)
    engine.signal("go", run=runs["naps"])  # an inbox that nobody reads
    assert WorkflowRun.objects.get(pk=runs["fails"].pk).status == "failed"

    then = first_schema()
    tables = [model for label, _ in FIRST for model in then.get_app_config(label).get_models()]
    assert len(tables) == 10
    assert [model._meta.label for model in tables if not model.objects.exists()] == []
    assert not {"parked_at", "version"} & {
        each.name for each in then.get_model("automation_agents.AgentRun")._meta.fields
    }

    # As the first release left them: parked for good, whatever the reason.
    old_run = then.get_model("automation_workflows.WorkflowRun")
    parked = {"status": "parked", "wake_at": None, "lease": None}
    old_run.objects.filter(pk=lost.pk).update(error="UnknownWorkflowError: No workflow is called 'nap'.", **parked)
    old_run.objects.filter(pk=broken.pk).update(error="3 workers in a row died.", **parked)
    old_call = then.get_model("automation_events.CallbackExecution")
    old_call.objects.filter(callback="hotel.gone").update(error="UnknownCallbackError: no function", **parked)
    old_answer = then.get_model("automation_agents.HandlerExecution")
    old_answer.objects.filter(handler="confirmed").update(
        status="parked", error="UnknownHandlerError: 'desk' has no handler"
    )
    old_event = then.get_model("automation_events.Event")
    old_event.objects.filter(event_name="checkin_due").update(error="UnknownEventError: gone", **parked)

    migrate(newest())
    answer = HandlerExecution.objects.get(handler="confirmed")
    for row in (WorkflowRun.objects.get(pk=lost.pk), CallbackExecution.objects.get(callback="hotel.gone"), answer):
        assert (row.status, row.parked_at) == ("parked", clock())
    assert WorkflowRun.objects.get(pk=lost.pk).wake_at == clock()
    assert WorkflowRun.objects.get(pk=broken.pk).wake_at is None
    assert AgentRun.objects.get().version == "1"

    Reservation.objects.filter(pk=stay.pk).update(note="mended")
    call_command("automation_resume", "workflow", pk=[broken.pk, runs["fails"].pk], failed=True, verbosity=0)
    engine.signal("go")
    change(booking, note="papers")
    for _ in range(8):
        poll_due(clock())
        work()
        clock.tick(HOUR)
    work()
    unfinished = WorkflowRun.objects.exclude(status="completed")
    assert [f"{row} {row.status} {row.error}" for row in unfinished] == []
    answers = HandlerExecution.objects.exclude(status="completed")
    assert [f"{row} {row.status} {row.error}" for row in answers] == []
    assert Event.objects.get(event_name="checkin_due").status == "processed"
    assert Signal.objects.filter(wake_at__isnull=False).count() == 0
    assert sorted(effects()) == sorted(
        [
            f"greet {stay.pk}", "gone callback", "nap", "nap of a class that was gone", "nap whose worker was killed",
            "signalled", "papers came", "mended", f"planned {stay.pk}", f"confirmed {booking.pk}",
            f"noted {booking.pk}", f"noted {booking.pk}",
        ]
    )  # fmt: skip


def test_code_of_the_first_release_writes_into_the_newest_tables(clock):
    """While a deployment replaces workers, the old ones insert and update: columns that they do not know stand in no
    way."""
    then = MigrationExecutor(connection).loader.project_state(FIRST).apps
    event = then.get_model("automation_events.Event").objects.create(
        entity_type="app.reservation", entity_id="1", event_name="e", declared_as="e"
    )
    then.get_model("automation_events.CallbackExecution").objects.create(event=event, callback="c", unique_key="c")
    then.get_model("automation_events.EventClaim").objects.create(
        event_name="e", key="k", unique_key="k", owner_kind="agent", owner_id=1
    )
    then.get_model("automation_events.RoutingShape").objects.create(event_name="e", unique_key="k")
    run = then.get_model("automation_workflows.WorkflowRun").objects.create(name="x")
    then.get_model("automation_workflows.StepExecution").objects.create(
        run=run, step="s", visit=1, attempt=1, finished=clock(), outcome="goto"
    )
    then.get_model("automation_workflows.Signal").objects.create(name="s")
    keeper = then.get_model("automation_agents.AgentRun").objects.create(name="x")
    then.get_model("automation_agents.AgentRoute").objects.create(run=keeper, key="k")
    then.get_model("automation_agents.HandlerExecution").objects.create(
        run=keeper, event=event, handler="h", due_at=clock(), unique_key="h"
    )
    assert AgentRun.objects.get().version == "1"
    assert WorkflowRun.objects.get().parked_at is None


@pytest.mark.parametrize("label", [label for label, _ in FIRST])
def test_every_later_column_may_be_left_out_by_older_code(label):
    then = MigrationExecutor(connection).loader.project_state(FIRST).apps
    now = MigrationExecutor(connection).loader.project_state(newest()).apps
    for model in then.get_app_config(label).get_models():
        known = {each.name for each in model._meta.fields}
        added = [each for each in now.get_model(label, model.__name__)._meta.fields if each.name not in known]
        wrong = [each.name for each in added if not each.null and each.db_default is models.NOT_PROVIDED]
        assert wrong == []
