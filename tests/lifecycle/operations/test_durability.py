"""Which commits of an occurrence wait for the disk on PostgreSQL: those whose loss would lose something."""

from __future__ import annotations

import pytest
from django.db import connection, transaction

from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.models import Event
from django_ai.automation.queues.claim import claim_rows
from tests.apps.reservations.models import Ticket
from tests.support.marks import only_on

pytestmark = [
    pytest.mark.django_db(transaction=True),
    only_on("postgresql", reason="only on PostgreSQL a commit may not wait"),
]


@pytest.fixture(autouse=True)
def waiting(waits_for_the_disk):
    """Commits wait, although the server of the gate is configured otherwise."""


@pytest.fixture(autouse=True)
def noted(waiting):
    """Note with each write to an event whether its commit waits for the disk, and what it wrote."""
    table = connection.ops.quote_name(Event._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            CREATE TABLE noted (id serial, waits text, status text, is_leased boolean);
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO noted (waits, status, is_leased)
                VALUES (current_setting('synchronous_commit'), NEW.status, NEW.lease IS NOT NULL);
                RETURN NULL;
            END $$;
            CREATE TRIGGER note AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note();
            """
        )
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"DROP TRIGGER note ON {table}; DROP FUNCTION note(); DROP TABLE noted")


def writes() -> list[tuple[str, str, bool]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT waits, status, is_leased FROM noted ORDER BY id")
        return cursor.fetchall()


def setting() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        return cursor.fetchone()[0]


def due_event() -> Event:
    """Return an event that is due and not claimed, as if its process had died after the commit."""
    with transaction.atomic():
        Ticket.objects.create(open=False)
        connection.run_on_commit.clear()
    return Event.objects.get(declared_as="ticket_closed")


def test_only_the_save_and_the_occurrence_wait():
    on_event("ticket_closed")(lambda event: None)
    Ticket.objects.create(open=False)
    assert [write for write in writes() if write[1:] != ("pending", False)] == [
        ("off", "pending", True),  # the claim
        ("on", "processed", True),
        ("off", "processed", False),  # the release
    ]
    assert {write[0] for write in writes() if write[1:] == ("pending", False)} == {"on"}
    assert setting() == "on"


def test_a_transaction_waits_as_a_whole():
    event = due_event()
    with transaction.atomic():
        assert claim_rows(Event, [event.pk], event.wake_at)
        assert setting() == "on"
    assert writes()[-1] == ("on", "pending", True)


def test_a_transaction_that_django_does_not_know_waits_as_a_whole():
    event = due_event()
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        assert claim_rows(Event, [event.pk], event.wake_at)
        assert setting() == "on"
        cursor.execute("COMMIT")
    assert writes()[-1] == ("on", "pending", True)
