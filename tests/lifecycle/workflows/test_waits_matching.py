"""Waits with lookups other than equality: residual lookups, typed values, looking back, and rejected matches."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.matching import match
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.core import engine, step, wait_for_event, workflow
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Document, Guest, Reservation, Room, Ticket
from tests.support.matching_runs import Context, Order, entity_of, save, statuses, waiting
from tests.support.rows import status

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)
# -- residual lookups --------------------------------------------------------------------------------------------------


MATCHES = {
    "a list of the Context": ({"status__in": "{{ ctx.statuses }}"}, {"status": "new"}, {"status": "sent"}),
    "a list of values": ({"status__in": ["paid", "sent"]}, {"status": "pai"}, {"status": "paid"}),
    "a set of values": ({"status__in": {"paid", "sent"}}, {"status": ""}, {"status": "paid"}),
    "a number": ({"amount__gte": 100}, {"amount": Decimal("99.99")}, {"amount": Decimal("100.00")}),
    "a decimal of the Context": ({"amount__gt": "{{ ctx.least }}"}, {"amount": 100}, {"amount": Decimal("100.01")}),
    "a number as text": ({"amount__lte": "5.50"}, {"amount": Decimal("5.51")}, {"amount": Decimal("5.5")}),
    "a range": ({"amount__range": (5, 7)}, {"amount": 8}, {"amount": 7}),
    "null": ({"due_at__isnull": True}, {"due_at": datetime(2030, 1, 1, tzinfo=UTC)}, {"due_at": None}),
    "a date's part": (
        {"due_at__year": 2031},
        {"due_at": datetime(2030, 6, 1, tzinfo=UTC)},
        {"due_at": datetime(2031, 6, 1, tzinfo=UTC)},
    ),
    "text without case": ({"status__iexact": "PAID"}, {"status": "sent"}, {"status": "Paid"}),
    "a part of a text": ({"status__contains": "%"}, {"status": "100"}, {"status": "100%"}),
    "equality and more": (
        {"status": "paid", "amount__gte": 100},
        {"status": "paid", "amount": 99},
        {"status": "paid", "amount": 100},
    ),
    "two that are more": (
        {"amount__gte": 5, "amount__lte": 7},
        {"amount": 8},
        {"amount": 6},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["looking back", "notified"])
def test_lookups_that_are_more_than_equality(work, before):
    """A lookup gives the same result for a run that waits when the event occurs and for one that waits later."""
    wrong = []
    for title, (wanted, other, fits) in MATCHES.items():
        first, second = Order.objects.create(), Order.objects.create()

        def occur(first=first, second=second, other=other, fits=fits):
            save(first, **other)
            save(second, **fits)

        run = waiting(wanted, before=occur if before else None)
        work()
        if not before:
            if status(run) != "suspended":
                wrong.append(f"{title}: {run.status} {run.error}")
            save(first, **other)
            work()
            if status(run) != "suspended":
                wrong.append(f"{title}: the other one woke it")
            save(second, **fits)
        work()
        if status(run) != "completed" or entity_of(run) != str(second.pk):
            wrong.append(f"{title}: {run.status} {run.error[-200:]}")
        engine.cancel(run)
    assert wrong == []


def test_many_values_and_relations(work):
    ann, bob, eve = (Guest.objects.create(name=name) for name in ("Ann", "O'Brien", "Eve"))
    order, other = Order.objects.create(payer=ann), Order.objects.create(payer=eve)
    order.guests.set([ann, bob])
    runs = {
        "m2m by key": waiting({"guests": bob.pk}),
        "m2m by field": waiting({"guests__name": "O'Brien"}),
        "m2m in the Context": waiting({"guests__in": "{{ ctx.guest_ids }}"}, guest_ids=[bob.pk, ann.pk]),
        "relation": waiting({"payer__name__startswith": "A"}),
        "relation in": waiting({"payer__name__in": ["Ann", "Bob"]}),
        "relation by key and more": waiting({"payer": ann.pk, "guests": bob.pk}),
        "relation and many": waiting({"payer__name": "Ann", "guests__name__in": ["O'Brien"]}),
    }
    nobody = waiting({"guests": eve.pk})
    work()
    assert set(statuses(nobody, *runs.values())) == {"suspended"}
    other.save()
    work()
    assert set(statuses(nobody, *runs.values())) == {"suspended"}
    order.save()
    work()
    assert {title: status(run) for title, run in runs.items()} == dict.fromkeys(runs, "completed")
    assert status(nobody) == "suspended"


def test_many_values_are_looked_back_for(work):
    bob, eve = Guest.objects.create(name="O'Brien"), Guest.objects.create(name="Eve")

    def occur():
        order = Order.objects.create()
        order.guests.set([bob, Guest.objects.create(name="Ann")])
        order.save()

    found = waiting({"guests__name": "O'Brien"}, before=occur)
    missed = waiting({"guests": eve.pk}, before=occur)
    work()
    work()
    assert statuses(found, missed) == ["completed", "suspended"]


def test_two_rows_of_a_relation_wake_once(work):
    order = Order.objects.create()
    order.guests.set([Guest.objects.create(name="A"), Guest.objects.create(name="Ab")])
    run = waiting({"guests__name__startswith": "A"})
    work()
    order.save()
    work()
    assert status(run) == "completed"
    assert run.steps.count() == 2


def test_reverse_relations(work):
    stay, other = Reservation.objects.create(), Reservation.objects.create()
    Document.objects.create(reservation=stay, kind="visa")
    run = waiting({"documents__kind": "visa"}, "reservation_confirmed")
    work()
    for each in (other, stay):
        each.status = "confirmed"
        each.save()
        work()
    assert status(run) == "completed"
    assert entity_of(run) == str(stay.pk)


def test_several_waiters_on_one_key_with_different_residuals(work):
    limits = [50, 100, 150, 100]
    runs = [waiting({"status": "paid", "amount__gte": limit}) for limit in limits]
    plain = waiting({"status": "paid"})
    work()
    order = save(Order.objects.create(), status="paid", amount=100)
    work()
    assert statuses(*runs, plain) == ["completed", "completed", "suspended", "completed", "completed"]
    save(order, amount=1000)
    work()
    assert status(runs[2]) == "completed"


def test_equal_residuals_are_asked_once(work):
    many = [waiting({"amount__gte": 100}) for _ in range(6)]
    work()
    order = Order.objects.create()

    with CaptureQueriesContext(connection) as found:
        save(order, amount=200)
    asked = [query["sql"] for query in found if "amount" in query["sql"] and ">=" in query["sql"]]
    assert len(asked) == 1
    assert set(statuses(*many)) == {"running"}


def test_the_residual_is_asked_of_what_is_in_the_database_when_it_occurs(work):
    run = waiting({"amount__gte": 100})
    work()
    order = Order.objects.create()
    with transaction.atomic():
        save(order, amount=200)
        save(order, amount=5)
    work()
    assert status(run) == "suspended"


def test_many_values_in_a_list(work):
    run = waiting({"pk__in": "{{ ctx.guest_ids }}"}, guest_ids=list(range(-2000, 2)))
    nobody = waiting({"status__in": "{{ ctx.statuses }}"}, statuses=[])
    work()
    save(Order.objects.create(pk=1))
    work()
    assert statuses(run, nobody) == ["completed", "suspended"]


def test_an_empty_list_finds_nothing_when_looking_back(work):
    nobody = waiting({"status__in": []}, before=lambda: save(Order.objects.create()))
    work()
    assert status(nobody) == "suspended"


def test_null_in_a_list_is_nothing_as_in_sql(work):
    run = waiting({"payer__in": [None]})
    work()
    save(Order.objects.create())
    work()
    assert status(run) == "suspended"


def test_a_none_of_the_context_means_null(work):
    run = waiting({"due_at": "{{ ctx.when }}"})
    work()
    save(Order.objects.create(due_at=datetime(2030, 1, 1, tzinfo=UTC)))
    work()
    assert status(run) == "suspended"
    save(Order.objects.create(due_at=None))
    work()
    assert status(run) == "completed"


def test_a_none_of_the_context_is_looked_back_for(work):
    run = waiting({"due_at": "{{ ctx.when }}"}, before=lambda: save(Order.objects.create(due_at=None)))
    work()
    work()
    assert status(run) == "completed"


# -- values are typed --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["looking back", "notified"])
def test_values_are_typed_by_the_field(work, before):
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    ann = Guest.objects.create(name="O'Brien")
    order = Order.objects.create(amount=5, token=uuid.UUID(int=7), due_at=noon, payer=ann)
    occur = order.save
    matches = {
        "a text against a number": ({"amount": "5"}, {}),
        "another text": ({"amount": "5.000"}, {}),
        "a text against a key": ({"payer_id": str(ann.pk)}, {}),
        "a relation": ({"payer": "{{ ctx.number }}"}, {"number": ann.pk}),
        "an instance": ({"payer": ann}, {}),
        "a relation's key": ({"payer__pk": str(ann.pk)}, {}),
        "an apostrophe": ({"payer__name": "O'Brien"}, {}),
        "an apostrophe of the Context": ({"payer__name": "{{ ctx.text }}"}, {"text": "O'Brien"}),
        "a text made of parts": ({"payer__name": "O'{{ ctx.text }}"}, {"text": "Brien"}),
        "a UUID": ({"token": uuid.UUID(int=7)}, {}),
        "a UUID as text": ({"token": str(uuid.UUID(int=7)).upper()}, {}),
        "a UUID of the Context": ({"token": "{{ ctx.token }}"}, {"token": uuid.UUID(int=7)}),
        "a moment": ({"due_at": "{{ ctx.when }}"}, {"when": "2030-01-01T13:00:00+01:00"}),
        "a moment as text": ({"due_at": "2030-01-01T12:00:00Z"}, {}),
        "a moment among others": ({"due_at__in": [noon + DAY, noon]}, {}),
        "a moment in order": ({"due_at__gt": "{{ ctx.when }}"}, {"when": noon - DAY}),
        "exact": ({"status__exact": "new"}, {}),
    }
    runs = {
        title: waiting(match, before=occur if before else None, **fields) for title, (match, fields) in matches.items()
    }
    others = [
        waiting({"amount": "five"}),
        waiting({"amount__gte": "five"}),
        waiting({"token": "no uuid"}),
        waiting({"due_at__gt": "tomorrow"}),
        waiting({"payer": "x"}),
        waiting({"payer__name": "O''Brien"}),
        waiting({"payer__in": ["x"]}),
        waiting({"amount": 5.5}),
    ]
    work()
    occur()
    work()
    wrong = {title: f"{run.status} {run.error[-150:]}" for title, run in runs.items() if status(run) != "completed"}
    assert wrong == {}
    assert set(statuses(*others)) == {"suspended"}, [run.error[-200:] for run in others]


def test_nonsense_of_the_users_never_breaks_the_save_of_others(work):
    """A value that the field cannot have matches no event, and breaks neither the save nor other waits."""
    silly = [
        waiting({"amount__gte": "{{ ctx.text }}"}, text="a lot"),
        waiting({"due_at__year": "{{ ctx.text }}"}, text="soon"),
        waiting({"token__in": "{{ ctx.statuses }}"}),
        waiting({"amount__range": "{{ ctx.statuses }}"}),
        waiting({"pk__in": "{{ ctx.statuses }}"}),
    ]
    good = waiting({"amount__gte": 5})
    work()
    before = statuses(*silly)
    save(Order.objects.create(), amount=10)
    work()
    assert status(good) == "completed"
    assert statuses(*silly) == before


# -- rejected matches --------------------------------------------------------------------------------------------------


def test_a_match_that_makes_no_sense_fails_the_run_at_once(work):
    refused = [
        ({"status__in": "paid"}, ["'status__in'", "list"]),
        ({"status__in": "{{ ctx.text }}"}, ["'status__in'", "list"]),
        ({"status__in": 5}, ["'status__in'", "list"]),
        ({"amount__in": "{{ ctx.number }}"}, ["'amount__in'", "list"]),
        ({"guests__in": "{{ ctx.text }}"}, ["'guests__in'", "list"]),
        ({"statos": "x"}, ["'statos'", "Did you mean 'status'"]),
        ({"payr__name": "x"}, ["'payr__name'", "Did you mean 'payer'"]),
        ({"status__containz": "x"}, ["'status__containz'", "contains"]),
        ({"payer__nam": "x"}, ["'payer__nam'"]),
        ({"amount": "{{ ctx.nothing }}"}, ["'nothing'"]),
    ]
    runs = [waiting(match) for match, _ in refused]
    work()
    assert set(statuses(*runs)) == {"failed"}
    silent = [
        (run.error[-200:], text)
        for run, (_, named) in zip(runs, refused, strict=True)
        for text in named
        if text not in run.error
    ]
    assert silent == []
    assert {run.steps.count() for run in runs} == {1}  # wrong use is not retried


@pytest.mark.parametrize("name", ["*", "order_*", "order_saved*"])
def test_a_wait_is_for_one_event(name):
    with pytest.raises(DefinitionError, match=r"without '\*'"):
        wait_for_event(name)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("done:{{ ctx.method() }}", "method()"),
        ("done:{{ ctx._private }}", "_private"),
        ("done:{{ instance.pk }}", "instance.pk"),
        ("done:{% if x %}", "template tag"),
        ("done:{{ ctx.pk", "not closed"),
    ],
)
def test_a_waits_name_reaches_no_further_than_the_context(name, named):
    with pytest.raises(DefinitionError) as raised:
        wait_for_event(name)
    assert named in str(raised.value)


@pytest.mark.parametrize("namespace", ["", 5, ["north"]])
def test_a_waits_namespace_is_a_text(namespace):
    with pytest.raises(DefinitionError, match="namespace="):
        wait_for_event("order_saved", namespace=namespace)


# -- other cases -------------------------------------------------------------------------------------------------------


def test_a_residual_wait_can_time_out(clock, work):
    run = waiting({"amount__gte": 100}, timeout=DAY)
    work()
    clock.tick(DAY)
    work()
    run.refresh_from_db()
    assert run.status == "suspended"  # the step ran again with "timeout" and waits once more
    assert run.steps.count() == 2


def test_an_event_is_consumed_once_by_a_residual_wait(work):
    @workflow("again")
    class Again:
        Context = Context

        @step(start=True)
        def first(self):
            return wait_for_event("order_saved", match={"amount__gte": 100})

    engine.start("again")
    work()
    for amount in (200, 50, 300):
        save(Order.objects.create(), amount=amount)
        work()
        work()
    (run,) = WorkflowRun.objects.all()
    assert [each.wake_reason for each in run.steps.order_by("pk")] == ["first", "event", "event"]


def test_two_models_of_one_event_name_and_a_field_of_only_one(declare, work):
    declare(Room, EventDefinition("saved", trigger=EventTrigger.UPDATE))
    declare(Ticket, EventDefinition("saved", trigger=EventTrigger.UPDATE))
    runs = [waiting({"title__startswith": "x"}, "saved"), waiting({"number": "1"}, "saved")]
    work()
    room, ticket = Room.objects.create(number="1"), Ticket.objects.create(title="xy")
    ticket.save()
    work()
    assert statuses(*runs) == ["completed", "suspended"]
    room.save()
    work()
    assert status(runs[1]) == "completed"


def test_a_key_of_one_model_does_not_meet_a_lookup_of_another(declare, work):
    """Only ``Room`` has both fields: an event of the same name from ``Ticket`` does not evaluate the match."""
    declare(Room, EventDefinition("saved", trigger=EventTrigger.UPDATE))
    declare(Ticket, EventDefinition("saved", trigger=EventTrigger.UPDATE))
    run = waiting({"is_clean": True, "number__gte": "1"}, "saved")
    work()
    Ticket.objects.create().save()
    work()
    assert status(run) == "suspended"
    Room.objects.create(number="2", is_clean=True).save()
    work()
    assert status(run) == "completed"


def test_a_match_survives_its_way_through_the_database(work):
    """The values of a residual match are read from the row's JSON when the event occurs."""
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    ann = Guest.objects.create(name="Ann")
    runs = [
        waiting({"due_at__lte": noon}),
        waiting({"amount__lte": Decimal("5.50")}),
        waiting({"token__in": {uuid.UUID(int=7), uuid.UUID(int=8)}}),
        waiting({"payer__in": [ann]}),
        waiting({"amount__range": (Decimal("5.4"), Decimal("5.6"))}),
        waiting({"amount__range": [Decimal("5.6"), 7]}),
        waiting({"due_at__range": (noon - DAY, noon)}),
    ]
    work()
    save(Order.objects.create(due_at=noon, amount=Decimal("5.50"), token=uuid.UUID(int=7), payer=ann))
    work()
    expected = ["completed"] * 7
    expected[5] = "suspended"
    assert statuses(*runs) == expected


def test_a_match_and_a_deployment_that_drops_the_field(declare, work, monkeypatch):
    """A lookup of a field that no longer exists wakes no run and breaks no save."""
    run = waiting({"amount__gte": 5})
    work()
    run.waits.update(match={"price__gte": 5})
    save(Order.objects.create(), amount=10)
    work()
    assert status(run) == "suspended"


def test_a_huge_list_becomes_no_keys(work):
    assert match.MAX_LIST_KEYS == 100
    run = waiting({"status__in": [f"s{n}" for n in range(500)]})
    work()
    save(Order.objects.create(), status="s499")
    work()
    assert status(run) == "completed"
