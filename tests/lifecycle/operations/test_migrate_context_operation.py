"""``MigrateContext`` in migrations: stored Contexts are transformed, validated before anything is written, and once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.apps import apps
from django.db import connection, migrations
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.state import ProjectState
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import complete, engine, event_workflow, fail, step, wait, workflow
from django_ai.automation.exceptions import ContextError, DecryptionError, DefinitionError
from django_ai.automation.queues import context_migration
from django_ai.automation.workflows.definitions import all_workflows, unregister
from django_ai.automation.workflows.models import StepExecution, WorkflowRun
from django_ai.automation.workflows.operations import MigrateContext
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave, status

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)


def run(*operations, backwards: bool = False, atomic: bool = True) -> None:
    migration = migrations.Migration("0002_more", "reservations")
    migration.operations = list(operations)
    with connection.schema_editor(atomic=atomic) as editor:
        (migration.unapply if backwards else migration.apply)(ProjectState.from_apps(apps), editor)


def before(price: str = "1.50", ends: bool = False) -> None:
    """Declare the first version."""

    @workflow("checkout", version=1)
    class Checkout:
        class Context(BaseModel):
            price: str = "1.50"
            ends: str = ""

        @step(start=True)
        def begin(self):
            if self.context.ends:
                return complete() if self.context.ends == "done" else fail("broken")
            return wait("bell", then=self.end)

        @step()
        def end(self):
            return complete()


def after(version: int = 2) -> None:
    """Declare the version that the code has after the release."""
    for each in all_workflows():
        if each.name == "checkout":
            unregister(each)

    @workflow("checkout", version=version)
    class Checkout:
        class Context(BaseModel):
            cents: int
            ends: str = ""

        @step(start=True)
        def begin(self):
            return self.end()

        @step()
        def end(self):
            leave(f"{self.context.cents} cents")
            return complete()


def to_cents(data):
    return {**{k: v for k, v in data.items() if k != "price"}, "cents": round(float(data["price"]) * 100)}


def to_price(data):
    return {**{k: v for k, v in data.items() if k != "cents"}, "price": f"{data['cents'] / 100:.2f}"}


MIGRATION = MigrateContext("checkout", to_cents, to_price, version=1)


def test_the_contexts_of_live_runs_are_transformed(work):
    before()
    waiting, failed = engine.start("checkout"), engine.start("checkout", price="2.25", ends="broken")
    done = engine.start("checkout", ends="done")
    work()
    after()
    run(MIGRATION)
    data = dict(WorkflowRun.objects.values_list("pk", "data"))
    assert data[waiting.pk] == {"cents": 150, "ends": ""}
    assert data[failed.pk] == {"cents": 225, "ends": "broken"}
    assert data[done.pk] == {"price": "1.50", "ends": "done"}
    assert dict(WorkflowRun.objects.values_list("pk", "version")) == {waiting.pk: "2", failed.pk: "2", done.pk: "1"}
    engine.signal("bell")
    engine.resume(failed)
    work()
    assert sorted(effects()) == ["150 cents", "225 cents"]


def test_it_can_be_reversed(work):
    before()
    waiting = engine.start("checkout", price="2.00")
    work()
    after()
    run(MIGRATION)
    run(MIGRATION, backwards=True)
    waiting.refresh_from_db()
    assert (waiting.data, waiting.version) == ({"price": "2.00", "ends": ""}, "1")
    with pytest.raises(IrreversibleError):
        run(MigrateContext("checkout", to_cents), backwards=True)


def test_a_row_that_does_not_fit_stops_it_before_anything_is_written(work):
    before()
    first, second = engine.start("checkout"), engine.start("checkout")
    work()
    WorkflowRun.objects.filter(pk=second.pk).update(data={"price": "free", "ends": ""})
    after()
    with pytest.raises(ContextError, match=rf"checkout #{second.pk}: to_cents raised(?s:.*)could not convert"):
        run(MIGRATION, atomic=False)

    def wrongly(data):
        return {"cents": "many", "ends": data["ends"]} if data["price"] == "free" else to_cents(data)

    with pytest.raises(ContextError, match=rf"checkout #{second.pk}: (?s:.*)cents: Input should be a valid integer"):
        run(MigrateContext("checkout", wrongly), atomic=False)
    first.refresh_from_db()
    assert (first.data, first.version) == ({"price": "1.50", "ends": ""}, "1")


def test_the_history_is_transformed_so_that_a_run_can_be_rewound(work):
    before()
    waiting = engine.start("checkout")
    work()
    after()
    run(MIGRATION)
    kept = StepExecution.objects.get(run=waiting, before__isnull=False).before
    assert (kept["data"], kept["version"]) == ({"cents": 150, "ends": ""}, "2")
    engine.rewind(waiting, 1)
    work()
    assert effects() == ["150 cents"]


def test_what_history_does_not_fit_stays(work):
    before()
    waiting = engine.start("checkout")
    work()
    kept = {"data": {"price": "free"}, "version": "1", "step": "begin"}
    StepExecution.objects.filter(run=waiting).update(before=kept)
    after()
    run(MIGRATION)
    assert StepExecution.objects.get(run=waiting).before == kept


def test_a_run_that_is_performed_loses_its_lease_and_begins_again(work):
    before()
    waiting = engine.start("checkout")
    WorkflowRun.objects.filter(pk=waiting.pk).update(lease="host:1:x", wake_at=timezone.now() + HOUR, seq=7)
    after()
    run(MIGRATION)
    waiting.refresh_from_db()
    assert (waiting.lease, waiting.seq, waiting.data["cents"]) == (None, 8, 150)
    work()
    assert status(waiting) == "completed"


def test_an_interrupted_migration_transforms_no_context_twice(work, monkeypatch):
    before()
    for _ in range(5):
        engine.start("checkout")
    work()
    after(version=1)  # so that the version does not tell
    monkeypatch.setattr(context_migration, "BITE", 2)
    write = context_migration.ContextMigration._write

    def fail_later(self, rows):
        if rows.filter(pk__gt=list(WorkflowRun.objects.order_by("pk").values_list("pk", flat=True))[3]).exists():
            raise KeyboardInterrupt
        return write(self, rows)

    def lenient(data):
        return data if "cents" in data and calls.append(data) is None else to_cents(data)

    calls: list[object] = []
    operation = MigrateContext("checkout", lenient)
    monkeypatch.setattr(context_migration.ContextMigration, "_write", fail_later)
    with pytest.raises(KeyboardInterrupt):
        run(operation, atomic=False)
    assert sum("cents" in data for data in WorkflowRun.objects.values_list("data", flat=True)) == 4
    monkeypatch.setattr(context_migration.ContextMigration, "_write", write)
    run(operation, atomic=False)
    assert all("cents" in data for data in WorkflowRun.objects.values_list("data", flat=True))
    assert calls == []


def test_planned_runs_without_a_context_are_left_alone():
    @event_workflow("checkin_due", offset=-HOUR, name="planned")
    class Planned:
        class Context(BaseModel):
            entity_id: str

        @step(start=True)
        def begin(self):
            return complete()

    Reservation.objects.create(status="confirmed", checkin_at=timezone.now() + 3 * HOUR)
    run(MigrateContext("planned", lambda data: 1 / 0))
    assert WorkflowRun.objects.get().data == {}


def test_contexts_are_encrypted_again(work, settings):
    settings.AUTOMATION = {"CONTEXT_CODEC": "django_ai.automation.state.fernet.FernetCodec"}
    before()
    waiting = engine.start("checkout")
    work()
    after()
    run(MIGRATION)
    with connection.cursor() as cursor:
        cursor.execute("SELECT data FROM automation_workflows_workflowrun")
        (stored,) = cursor.fetchone()
    assert "$sealed" in str(stored)
    waiting.refresh_from_db()
    assert waiting.data == {"cents": 150, "ends": ""}
    settings.SECRET_KEY = "another key, and long enough to please the checks of Django: 0123456789"
    with pytest.raises(DecryptionError, match=rf"checkout #{waiting.pk}"):
        run(MigrateContext("checkout", to_price))


def test_only_the_named_version_is_transformed(work):
    before()
    engine.start("checkout")
    after()
    engine.start("checkout", cents=7)
    run(MIGRATION)
    assert sorted(each["cents"] for each in WorkflowRun.objects.values_list("data", flat=True)) == [7, 150]


def test_wrong_arguments_and_unknown_workflows_are_refused():
    for wrong in ("name", lambda old, new: old):
        with pytest.raises(DefinitionError, match="MigrateContext"):
            MigrateContext("checkout", wrong)
    before()
    engine.start("checkout")
    after()
    with pytest.raises(ContextError, match="must return the new dict"):
        run(MigrateContext("checkout", lambda data: None))
    WorkflowRun.objects.update(name="checkouts")
    with pytest.raises(DefinitionError, match=r"no workflow is called 'checkouts'\. Did you mean 'checkout'"):
        run(MigrateContext("checkouts", to_cents))
    run(MigrateContext("nothing", to_cents))
    assert MIGRATION.describe() == "Transform the Contexts of the workflow 'checkout' of version 1"
