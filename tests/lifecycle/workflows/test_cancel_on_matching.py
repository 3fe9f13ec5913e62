"""``cancel_on=``: which events cancel which runs, arguments and checks, and what it costs."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import (
    EventDefinition,
    EventTrigger,
    FreeEvent,
    On,
    complete,
    emit,
    engine,
    event_workflow,
    fail,
    sleep,
    step,
    wait,
    wait_all,
    workflow,
)
from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows import delivery
from django_ai.automation.workflows.checks import check_workflows
from django_ai.automation.workflows.models import Signal, Wait
from tests.apps.reservations.models import Document, Reservation
from tests.support.cancelled_runs import SAVED, OfOrder, declare_watched, order_of, patient
from tests.support.matching_runs import Order, save
from tests.support.rows import status

MINUTE = timedelta(minutes=1)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def watched() -> type:
    return declare_watched()


@pytest.mark.parametrize(
    ("on", "other", "fits"),
    [
        (On("order_saved", match={"status__in": "{{ ctx.statuses }}"}), {"status": "sent"}, {"status": "paid"}),
        (On("order_saved", match={"pk": "{{ ctx.order }}", "amount__gte": 100}), {"amount": 99}, {"amount": 100}),
        (On("order_saved", match={"status": "called off"}), {"status": "sent"}, {"status": "called off"}),
    ],
    ids=["a list", "more than equality", "a value"],
)
@pytest.mark.parametrize("before", [True, False], ids=["looking back", "notified"])
def test_a_match_compares_like_that_of_a_wait(work, on, other, fits, before):
    patient("matches", on)

    first, second = Order.objects.create(), Order.objects.create()
    runs = [engine.start("matches", order=each.pk) for each in (first, second)]
    if not before:
        work()
    save(first, **other)
    save(second, **fits)
    work()
    assert status(runs[1]) == "cancelled"
    assert status(runs[0]) == ("suspended" if "pk" in on.match else "cancelled")


def test_one_of_several_events_is_enough(work):
    patient("several", SAVED, On("document_uploaded", match={"reservation_id": "{{ ctx.order }}"}))

    stay = Reservation.objects.create()
    run = engine.start("several", order=stay.pk)
    work()
    assert Wait.objects.filter(run=run.pk).count() == 3
    Document.objects.create(reservation=stay)
    assert status(run) == "cancelled"


@pytest.mark.parametrize("way", ["at first", "signal", "timeout", "all", "resumed"])
def test_the_values_of_the_context_are_those_of_the_start(clock, work, way):
    """Also after what wakes the run, which deletes its waits."""

    @workflow("changes", cancel_on=[SAVED])
    class Changes:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            self.context.order += 1
            if way == "resumed":
                return fail("no")
            if way == "all":
                return wait_all(go=wait("go"), other=sleep(MINUTE), then=self.second)
            return wait("go", timeout=MINUTE, on_timeout=self.second, then=self.second)

        @step()
        def second(self):
            return wait("never")

    first, second = Order.objects.create(), Order.objects.create()
    run = engine.start("changes", order=first.pk)
    work()
    if way in ("signal", "all"):
        engine.signal("go")
    if way in ("timeout", "all"):
        clock.tick(MINUTE)
    if way == "resumed":
        engine.resume(run, "second")
    work()
    run.refresh_from_db()
    assert run.current_step == ("begin" if way == "at first" else "second")
    save(second)
    assert status(run) == "suspended"
    save(first)
    assert status(run) == "cancelled"


@pytest.mark.parametrize("one_by_one", [True, False])
def test_one_event_may_cancel_any_number_of_runs(work, monkeypatch, one_by_one):
    if one_by_one:
        monkeypatch.setattr(delivery, "RUNS_PER_TRANSACTION", 3)

    patient("any", On("order_saved", match={}))

    runs = [engine.start("any", order=number) for number in range(10)]
    work()
    save(Order.objects.create())
    assert {status(run) for run in runs} == {"cancelled"}


@pytest.mark.parametrize("addressed", [True, False])
@pytest.mark.parametrize("before", [True, False], ids=["looking back", "notified"])
def test_a_signal_on_the_channel_of_the_event_stands_for_it(watched, work, before, addressed):
    order, run = order_of()
    other = engine.start("watched", order=order.pk + 1, do="signal")
    if not before:
        work()
    engine.signal("event:order_saved", {"entity_id": order.pk}, run=run if addressed else None)
    work()
    assert (status(run), status(other)) == ("cancelled", "suspended")
    assert run.error == (
        f"Cancelled by signal 'event:order_saved' #{Signal.objects.get().pk}, which its workflow names in cancel_on=."
    )


def test_a_namespace_is_compared(declare, work):
    declare(Order, EventDefinition("order_saved", trigger=EventTrigger.UPDATE, namespace=lambda order: order.status))
    here = On("order_saved", match={"pk": "{{ ctx.order }}"}, namespace="north")

    patient("northern", here)

    order = Order.objects.create()
    run = engine.start("northern", order=order.pk)
    work()
    save(order, status="south")
    assert status(run) == "suspended"
    save(order, status="north")
    assert status(run) == "cancelled"


def test_an_emitted_event_cancels_by_its_payload(work):
    class Recalled(BaseModel):
        order: int

    FreeEvent("recalled", payload=Recalled)
    patient("emitted", On("recalled", match={"order": "{{ ctx.order }}"}))
    early, late, other = (engine.start("emitted", order=number) for number in (1, 2, 3))
    emit("recalled", {"order": 1})
    work()
    emit("recalled", {"order": 2})
    assert [status(run) for run in (early, late, other)] == ["cancelled", "cancelled", "suspended"]
    assert early.error == "Cancelled by event 'recalled', which its workflow names in cancel_on=."


@pytest.mark.parametrize("before", [True, False], ids=["looking back", "notified"])
def test_a_name_may_be_made_of_the_context(declare, work, before):
    declare(Order, EventDefinition("order_saved:{{ instance.pk }}", trigger=EventTrigger.UPDATE))
    patient("templated", On("order_saved:{{ ctx.order }}", match={}))
    orders = [Order.objects.create() for _ in range(2)]
    runs = [engine.start("templated", order=each.pk) for each in orders]
    if not before:
        work()
    save(orders[0])
    work()
    assert [status(run) for run in runs] == ["cancelled", "suspended"]


@pytest.mark.parametrize("before", [True, False], ids=["looking back", "notified"])
def test_a_deletion_cancels(work, before):
    patient("deleted", On("order_gone", match={"pk": "{{ ctx.order }}"}))
    orders = [Order.objects.create() for _ in range(2)]
    runs = [engine.start("deleted", order=each.pk) for each in orders]
    if not before:
        work()
    orders[0].delete()
    work()
    assert [status(run) for run in runs] == ["cancelled", "suspended"]


def test_a_match_that_no_entity_can_have_fails_the_first_step(work):
    patient("wrong", On("order_saved", match={"amountt": 7}))  # a system check finds it
    run = engine.start("wrong", order=1)
    work()
    run.refresh_from_db()
    assert run.status == "failed"
    assert "On('order_saved'): match compares 'amountt'" in run.error


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_where_it_is_not_used_an_occurrence_and_a_run_take_no_more_queries(work):
    @workflow("plain")
    class Plain:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            return complete()

    engine.start("plain", order=1)
    with CaptureQueriesContext(connection) as queries:
        work()
    assert [each["sql"] for each in queries if "automation_workflows_wait" in each["sql"]] == []
    order = Order.objects.create()
    with CaptureQueriesContext(connection) as queries:
        save(order)
    assert len([each for each in queries if "automation_workflows_wait" in each["sql"]]) == 1


# -- arguments and checks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: On("order_saved"),
            r"On\('order_saved'\) needs match=, which says .*match=\{\} means any entity",
        ),
        (lambda: On("order_*", match={}), r"On\('order_\*'\): .*name it without '\*'"),
        (lambda: On("", match={}), r"On\(''\): a name is a string of 1 to 200"),
        (lambda: On(7, match={}), r"On\(7\): a name is a string"),
        (lambda: On("order_saved", match=["pk"]), r"match=\['pk'\] must be a dict"),
        (lambda: On("order_saved", match={"pk": "{{ order.pk }}"}), r"order.pk"),
        (lambda: On("order_saved", match={}, namespace=7), r"namespace"),
        (
            lambda: On(EventDefinition("lost:{{ instance.pk }}"), match={}),
            r"On\(.*\): each entity has an event of its own name\. Write its name with expressions on the Context",
        ),
    ],
)
def test_a_wrong_argument_is_refused(make, said):
    with pytest.raises(DefinitionError, match=said):
        make()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (SAVED, r"cancel_on=On\(.*must be a list"),
        (["order_saved"], r"cancel_on=\['order_saved'\] must be a list of On"),
        ([On("order_saved", match={"pk": "{{ ctx.oder }}"})], r"no field 'oder'. Did you mean 'order'\?"),
        ([On("order_saved:{{ ctx.oder }}", match={})], r"no field 'oder'. Did you mean 'order'\?"),
    ],
)
@pytest.mark.parametrize(
    "decorator", [lambda on: workflow("x", cancel_on=on), lambda on: event_workflow("x", cancel_on=on)]
)
def test_what_does_not_fit_the_class_is_refused_at_import(decorator, given, said):
    with pytest.raises(DefinitionError, match=said):

        @decorator(given)
        class Wrong:
            Context = OfOrder

            @step(start=True)
            def begin(self):
                return complete()


@pytest.mark.parametrize(
    ("on", "code", "hint"),
    [
        (On("order_savd", match={}), "automation.E208", "Did you mean 'order_saved'?"),
        (On("order_saved", match={"amountt": 7}), "automation.E209", "amount"),
        (On("order_saved", match={"pk": 7}), None, ""),
        (On(Order.events[0], match={"amount__gte": 7}), None, ""),
        (On("order_saved:{{ ctx.order }}", match={}), "automation.E208", "order_saved"),
    ],
)
def test_the_checks_know_events_and_fields(on, code, hint):
    @workflow("checked", cancel_on=[on])
    class Checked:
        Context = OfOrder

        @step(start=True)
        def begin(self):
            return complete()

    found = [each for each in check_workflows(None) if each.obj is Checked]
    assert [each.id for each in found] == ([] if code is None else [code])
    assert all(hint in str(each.hint) for each in found)
