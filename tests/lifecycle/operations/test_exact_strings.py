"""Every database compares names and keys exactly, and a value that is too long is refused, not truncated."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db import DataError, IntegrityError, connection
from pydantic import BaseModel

from django_ai.automation import engine
from django_ai.automation.db.inserts import insert_ignoring
from django_ai.automation.db.mariadb import EXACT_COLLATION, compare_exactly
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.workflows.core import complete, step, wait, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.marks import not_on, only_on
from tests.support.rows import effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def listener():
    @workflow("listener")
    class Listener:
        class Context(BaseModel):
            word: str

        @step(start=True)
        def begin(self):
            return wait(self.context.word, then=self.end)

        @step()
        def end(self):
            leave(self.context.word)
            return complete()


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("other", ["Word", "wörd", "WORD"])
def test_signals_are_distinguished(other, work):
    """A signal whose name differs in case or accent is not delivered, whether sent before or during the wait."""
    run = engine.start("listener", word="word")
    engine.signal(other, {}, run=run)
    work()
    engine.signal(other)
    engine.signal(other, run=run)
    work()
    assert effects() == []
    engine.signal("word")
    work()
    assert effects() == ["word"]


def test_names_are_distinguished(work):
    one = Reservation.objects.create(status="confirmed")
    event = event_of(one, "reservation_confirmed")
    Event.objects.filter(pk=event.pk).update(event_name="Reservation_Confirmed")
    assert not Event.objects.filter(event_name="reservation_confirmed").exists()
    assert Event.objects.filter(event_name="Reservation_Confirmed").exists()


@only_on("mysql", reason="only MariaDB ignores case and accents")
def test_all_texts_of_ours_are_exact():
    ours = [app for app in apps.get_app_configs() if app.name.startswith("django_ai.automation.")]
    tables = [model._meta.db_table for app in ours for model in app.get_models()]
    looked = "SELECT table_name, column_name, collation_name FROM information_schema.columns "
    with connection.cursor() as cursor:
        cursor.execute(
            f"{looked} WHERE table_schema = DATABASE() AND table_name IN %s AND collation_name IS NOT NULL", [tables]
        )
        loose = [found for found in cursor.fetchall() if found[2] not in (EXACT_COLLATION, "utf8mb4_bin")]
    assert loose == []


@only_on("mysql", reason="only MariaDB ignores case and accents")
def test_a_new_column_becomes_exact_with_the_next_migrate():
    app = apps.get_app_config("automation_workflows")
    table = WorkflowRun._meta.db_table
    asked = "SELECT collation_name FROM information_schema.columns WHERE table_name = %s AND column_name = 'novelty'"
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} ADD COLUMN novelty varchar(9) COLLATE utf8mb4_general_ci NULL")
        try:
            compare_exactly(app, connection.alias)
            cursor.execute(f"{asked} AND table_schema = DATABASE()", [table])
            assert cursor.fetchall() == ((EXACT_COLLATION,),)
        finally:
            cursor.execute(f"ALTER TABLE {table} DROP COLUMN novelty")


def execution(event_id: int, key: str, callback: str = "some") -> CallbackExecution:
    return CallbackExecution(event_id=event_id, callback=callback, unique_key=key)


def test_only_conflicts_are_ignored():
    event = event_of(Reservation.objects.create(status="confirmed"), "reservation_confirmed")
    rows = [execution(event.pk, str(number % 100)) for number in range(150)]
    assert insert_ignoring(CallbackExecution, rows) == 100
    assert insert_ignoring(CallbackExecution, [execution(event.pk, "7")]) == 0


def test_what_refers_to_nothing_is_refused():
    with pytest.raises(IntegrityError):
        insert_ignoring(CallbackExecution, [execution(10**9, "a")])
    assert not CallbackExecution.objects.exists()


@not_on("sqlite", reason="SQLite does not limit the length of strings")
def test_what_is_too_long_is_refused_and_not_cut():
    event = event_of(Reservation.objects.create(status="confirmed"), "reservation_confirmed")
    with pytest.raises(DataError):
        insert_ignoring(CallbackExecution, [execution(event.pk, "a"), execution(event.pk, "b", "x" * 251)])
    assert not CallbackExecution.objects.exists()
