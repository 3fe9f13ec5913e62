"""A request deletes many entities: few statements for all, and one snapshot and one deletion event for each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from itertools import groupby

import pytest
from django.db import connection, transaction
from django.db.models.signals import post_delete, pre_delete
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import on_event
from django_ai.automation.conf import conf
from django_ai.automation.events.checks import check_definitions
from django_ai.automation.events.commit_batch import CommitBatch
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.models import Event, Snapshot
from django_ai.automation.exceptions import DefinitionError, SnapshotFieldError
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.runtimes.tasks import cleanup_old
from django_ai.automation.workflows.core import complete, event_workflow, step, wait_for_event
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Guest, Reservation, Suite
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def deleted(declare) -> None:
    """Declare events of reservations, one of which is their deletion, and a callback for the deletion."""
    declare(
        Reservation,
        EventDefinition("confirmed", condition=lambda stay: stay.status == "confirmed"),
        EventDefinition("due", date_field="checkin_at"),
        EventDefinition("gone", trigger="delete", payload=lambda stay: {"note": stay.note}),
    )
    on_event("gone", name="farewell")(lambda event: leave(f"{event.entity.pk} {event.entity.note}"))


def stays(count: int, **values: object) -> list[Reservation]:
    return [Reservation.objects.create(note=f"note {n}", **values) for n in range(count)]


def statements(work: Callable[[], object]) -> list[str]:
    with CaptureQueriesContext(connection) as queries:
        work()
    return [query["sql"] for query in queries]


def wrappers() -> set[str]:
    """Return what wraps the statements of this connection, apart from what hears captured writes."""
    return {each.__qualname__ for each in connection.execute_wrappers} - {"_hear"}


def gone() -> list[Event]:
    return list(Event.objects.filter(declared_as="gone").order_by("pk"))


@pytest.mark.usefixtures("deleted")
def test_50_a_hundred_take_as_many_statements_as_two(monkeypatch):
    monkeypatch.setattr(CommitBatch, "__call__", lambda self: None)
    stays(102)
    first = Reservation.objects.order_by("pk").values_list("pk", flat=True)[:2]
    pair = Reservation.objects.filter(pk__in=list(first))
    two = statements(pair.delete)
    hundred = statements(lambda: Reservation.objects.all().delete())
    assert Reservation.objects.count() == 0
    # On SQLite, one INSERT takes at most thirty rows.
    assert [kind for kind, _ in groupby(sql[:30] for sql in hundred)] == [sql[:30] for sql in two]
    assert len(hundred) <= len(two) + (3 if connection.vendor == "sqlite" else 0)
    assert len(gone()) == 102


@pytest.mark.usefixtures("deleted")
def test_50_each_entity_leaves_one_snapshot_and_its_deletion_occurs_once():
    found = [(stay.pk, stay.note) for stay in stays(3)]
    Reservation.objects.all().delete()
    drain()
    assert sorted(effects()) == [f"{pk} {note}" for pk, note in found]
    assert Snapshot.objects.count() == 3
    for pk, note in found:
        rows = Event.objects.filter(entity_id=str(pk))
        assert rows.count() == 3
        assert len({row.snapshot_id for row in rows}) == 1
        assert {(row.entity.pk, row.entity.note) for row in rows} == {(pk, note)}
    assert [row.payload["note"] for row in gone()] == ["note 0", "note 1", "note 2"]


@pytest.mark.usefixtures("deleted")
def test_50_entities_that_are_loaded_in_part_leave_a_whole_snapshot():
    (stay,) = stays(1)
    few = statements(lambda: Reservation.objects.only("pk").delete())
    assert sum(sql.startswith("SELECT") and "note" in sql for sql in few) == 1
    drain()
    assert effects() == [f"{stay.pk} note 0"]


@pytest.mark.usefixtures("deleted")
def test_50_what_a_refused_deletion_had_announced_is_forgotten():
    kept, lost = stays(2)
    everything = Reservation.objects.all()
    refusals = [kept.pk]

    def refuse(instance: Reservation, **kwargs: object) -> None:
        if instance.pk in refusals:
            raise RuntimeError("not this one")

    pre_delete.connect(refuse, sender=Reservation, weak=False, dispatch_uid="refuse")
    try:
        for inner in (nullcontext, lambda: transaction.atomic(savepoint=False)):
            with pytest.raises(RuntimeError), transaction.atomic(), inner():
                everything.delete()
        with transaction.atomic():
            with pytest.raises(RuntimeError), transaction.atomic():
                everything.delete()
            refusals.clear()
            everything.filter(pk=lost.pk).delete()
    finally:
        pre_delete.disconnect(sender=Reservation, dispatch_uid="refuse")
    drain()
    assert [row.entity_id for row in gone()] == [str(lost.pk)]
    assert Reservation.objects.get() == kept
    assert not wrappers()


@pytest.mark.usefixtures("deleted")
def test_50_the_same_queryset_and_the_same_instance_delete_again():
    everything = Reservation.objects.all()
    (one,) = stays(1)
    everything.delete()
    stays(1)
    everything.delete()
    one.save()
    one.delete()
    one.save()
    one.delete()
    assert len(gone()) == 4
    assert {row.status for row in gone()} == {"processed"}
    assert not wrappers()


@pytest.mark.usefixtures("deleted")
def test_50_a_receiver_that_deletes_and_creates_meanwhile():
    one, two, three = stays(3)
    pks = sorted(str(stay.pk) for stay in (one, two, three))

    def also(instance: Reservation, **kwargs: object) -> None:
        if instance.pk == one.pk:
            Reservation.objects.filter(pk=three.pk).delete()

    def again(instance: Reservation, **kwargs: object) -> None:
        if instance.pk == one.pk:
            Reservation.objects.create(pk=one.pk, note="back")

    pre_delete.connect(also, sender=Reservation, weak=False, dispatch_uid="also")
    post_delete.connect(again, sender=Reservation, weak=False, dispatch_uid="again")
    try:
        Reservation.objects.filter(pk__in=[one.pk, two.pk]).delete()
    finally:
        pre_delete.disconnect(sender=Reservation, dispatch_uid="also")
        post_delete.disconnect(sender=Reservation, dispatch_uid="again")
    assert sorted(row.entity_id for row in gone()) == pks
    assert [stay.note for stay in Reservation.objects.all()] == ["back"]
    assert Event.objects.get(declared_as="due", active_key__isnull=False).status == "pending"
    assert not wrappers()


def test_50_a_child_and_its_parent_are_two_entities(declare):
    declare(Suite, *Suite.events, EventDefinition("suite_gone", trigger="delete"))
    suites = [Suite.objects.create(number=str(number)) for number in range(3)]
    Suite.objects.filter(pk__in=[suite.pk for suite in suites[:2]]).delete()
    assert Event.objects.filter(declared_as="suite_gone").count() == 2
    assert set(Event.objects.exclude(entity_id="2").values_list("active_key", flat=True)) == {None}
    suites[2].delete(keep_parents=True)
    assert Event.objects.filter(declared_as="suite_gone").count() == 3
    living = Event.objects.filter(active_key__isnull=False)
    assert set(living.values_list("entity_type", "entity_id")) == {("app.room", "2")}


def test_50_runs_that_wait_for_an_entity_end_with_it(declare, work):
    declare(
        Reservation,
        EventDefinition("booked", namespace=lambda stay: stay.note),
        EventDefinition("confirmed", condition=lambda stay: stay.status == "confirmed"),
    )

    @event_workflow("booked", name="watcher")
    class Watcher:
        class Context(BaseModel):
            pass

        @step(start=True)
        def one(self):
            return wait_for_event("confirmed", then="two")

        @step()
        def two(self):
            return complete()

    found = stays(3)
    pks = [stay.pk for stay in found]
    work()
    Reservation.objects.exclude(pk=found[2].pk).delete()
    runs = WorkflowRun.objects.order_by("pk")
    assert [run.status for run in runs] == ["cancelled", "cancelled", "suspended"]
    assert [f"app.reservation {pk}," in run.error for run, pk in zip(runs, pks, strict=True)] == [True, True, False]


# -- snapshot_fields= --------------------------------------------------------------------------------------------------


def test_50_a_snapshot_holds_what_its_definitions_name(declare, work):
    declare(
        Reservation,
        EventDefinition("confirmed", condition=lambda stay: stay.status == "confirmed", snapshot_fields=["status"]),
        EventDefinition("gone", trigger="delete", snapshot_fields=["guest_id"]),
    )
    guest = Guest.objects.create(name="Ann")
    stay = Reservation.objects.create(guest=guest, note="long " * 10, status="confirmed")
    Reservation.objects.filter(pk=stay.pk).delete()
    (row,) = gone()
    assert set(row.snapshot.data["fields"]) == {"status", "guest"}
    found = Event.objects.get(pk=row.pk).entity
    assert (found.pk, found.status, found.guest) == (stay.pk, "confirmed", guest)
    with pytest.raises(SnapshotFieldError, match=r"app.Reservation.*does not contain note: add it to snapshot_fields="):
        found.note  # noqa: B018


def test_50_one_definition_without_snapshot_fields_keeps_everything(declare):
    declare(
        Reservation,
        EventDefinition("confirmed", snapshot_fields=["status"]),
        EventDefinition("gone", trigger="delete"),
    )
    Reservation.objects.create(note="kept").delete()
    assert gone()[0].entity.note == "kept"


def test_50_definitions_that_need_no_field(declare):
    declare(
        Reservation,
        EventDefinition("confirmed", snapshot_fields=["pk"]),
        EventDefinition("gone", trigger="delete", snapshot_fields=[]),
    )
    assert [each for each in check_definitions(None) if each.obj is Reservation] == []
    stay = Reservation.objects.create(note="long")
    pk = stay.pk
    stay.delete()
    assert gone()[0].snapshot.data["fields"] == {}
    assert gone()[0].entity.pk == pk


@pytest.mark.parametrize("wrong", ["status", "", [1], [""], 5])
def test_50_snapshot_fields_lists_names(wrong):
    with pytest.raises(DefinitionError, match="snapshot_fields="):
        EventDefinition("gone", snapshot_fields=wrong)


def test_50_a_check_finds_snapshot_fields_that_do_not_exist(declare):
    declare(Reservation, EventDefinition("gone", trigger="delete", snapshot_fields=["sttus", "guest_id"]))
    (found,) = [each for each in check_definitions(None) if each.obj is Reservation]
    assert found.id == "automation.E115"
    assert "'sttus'" in found.msg
    assert "status" in found.hint


def test_50_the_snapshots_of_removed_events_go(declare, work, clock, settings):
    declare(Reservation, EventDefinition("confirmed"), EventDefinition("gone", trigger="delete"))
    stays(2)
    Reservation.objects.all().delete()
    work()
    cleanup_old()
    assert Snapshot.objects.count() == 2
    clock.tick(conf().retention("EVENTS") + timedelta(seconds=1))
    Event.objects.filter(entity_id=Event.objects.first().entity_id, declared_as="gone").update(
        occurred_at=clock(), event_created_at=clock()
    )
    cleanup_old()
    assert Snapshot.objects.count() == 1
    assert {row.snapshot_id for row in Event.objects.all()} == {Snapshot.objects.get().pk}


def test_50_the_admin_shows_what_a_snapshot_holds(admin_client, declare):
    declare(Reservation, EventDefinition("gone", trigger="delete"))
    Reservation.objects.create(note="seen by few").delete()
    page = admin_client.get(f"/admin/automation_events/event/{gone()[0].pk}/change/").content.decode()
    assert "&quot;note&quot;: &quot;seen by few&quot;" in page
