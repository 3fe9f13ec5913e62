"""Scenario 18: a rollback leaves no trace of events, runs, signals, agents or cancellations.

The tests use a real view with ATOMIC_REQUESTS as in production, savepoints inside a transaction that commits, and
``on_commit``.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from django.utils import timezone
from pydantic import BaseModel

from django_ai.automation import agent, complete, engine, handler, on_event, step, wait, workflow
from django_ai.automation.agents.core import AgentManager
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import CallbackExecution, Event
from django_ai.automation.queues.notifier import InlineNotifier, set_notifier
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, leave, status_of

pytestmark = pytest.mark.django_db(transaction=True)


class Refused(Exception):
    pass


@pytest.fixture(autouse=True)
def automations():
    @on_event("reservation_confirmed", name="note")
    def note(event):
        leave(f"confirmed {event.entity.note}")

    @workflow("waiter")
    class Waiter:
        class Context(BaseModel):
            word: str = ""

        @step(start=True)
        def first(self):
            return wait("word", then=self.second)

        @step()
        def second(self):
            leave(f"heard {self.context.word}")
            return complete()

    @agent("companion")
    class Companion:
        class Context(BaseModel):
            pass

        @handler("reservation_confirmed", match={})
        def hear(self, ctx):
            leave("companion")


def everything(note="x"):
    """Do everything that a request can do with automations."""
    stay = Reservation.objects.create(note=note)
    stay.status, stay.checkin_at = "confirmed", timezone.now() + timedelta(days=1)
    stay.save()
    engine.start("waiter")
    engine.signal("word", {"word": note})
    AgentManager.spawn("companion")


def assert_nothing_was():
    for model in (Reservation, Event, CallbackExecution, WorkflowRun, Signal, AgentRun):
        assert not model.objects.exists(), model
    assert effects() == []


def saves_and_raises(request):
    everything()
    raise Refused


def saves(request):
    everything()
    return HttpResponse("saved")


def saves_and_turns_back(request):
    everything()
    transaction.set_rollback(True)
    return HttpResponse("not saved")


def saves_some(request):
    everything("kept")
    try:
        with transaction.atomic():
            everything("lost")
            raise Refused
    except Refused:
        pass
    return HttpResponse("saved some")


@transaction.non_atomic_requests
def saves_alone_and_raises(request):
    everything()
    raise Refused


urlpatterns = [
    path(view.__name__, view)
    for view in (saves_and_raises, saves, saves_and_turns_back, saves_some, saves_alone_and_raises)
]


@pytest.fixture
def browse(settings, monkeypatch):
    """Return a function that requests a view of this module; each request runs in a transaction."""
    settings.ROOT_URLCONF = __name__
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    return Client(raise_request_exception=False).get


@pytest.mark.parametrize("inline", [False, True], ids=["with a worker", "inline"])
@pytest.mark.parametrize("view", ["saves_and_raises", "saves_and_turns_back"])
def test_18_a_request_that_is_rolled_back_never_was(view, inline, browse, work):
    set_notifier(InlineNotifier() if inline else None)
    try:
        assert browse(f"/{view}").status_code == (500 if view == "saves_and_raises" else 200)
    finally:
        set_notifier(None)
    work()
    assert_nothing_was()


def test_18_a_request_that_commits_has_all_of_it_once(browse, work):
    assert browse("/saves").content == b"saved"
    work()
    # The signal was sent after the run was created, so the run receives it, although it did not wait yet.
    assert sorted(effects()) == ["companion", "confirmed x", "heard x"]
    assert Event.objects.filter(event_name="reservation_confirmed", status="processed").count() == 1


def test_18_a_request_without_a_transaction_keeps_what_it_saved(browse, work):
    assert browse("/saves_alone_and_raises").status_code == 500
    work()
    # Each call committed separately, and the companion was spawned after the event had occurred.
    assert sorted(effects()) == ["confirmed x", "heard x"]
    assert (WorkflowRun.objects.count(), Signal.objects.count(), AgentRun.objects.count()) == (1, 1, 1)


def test_18_a_savepoint_that_is_rolled_back_never_was(browse, work):
    assert browse("/saves_some").content == b"saved some"
    work()
    assert [each.note for each in Reservation.objects.all()] == ["kept"]
    assert {event.entity.note for event in Event.objects.all()} == {"kept"}
    assert sorted(effects()) == ["companion", "confirmed kept", "heard kept"]
    assert (WorkflowRun.objects.count(), Signal.objects.count(), AgentRun.objects.count()) == (1, 1, 1)


def test_18_the_condition_that_counts_is_the_one_that_is_committed(work):
    """The condition turns true in a rolled back savepoint and again later: the event occurs once, as committed."""
    stay = Reservation.objects.create(note="first")
    with transaction.atomic():
        try:
            with transaction.atomic():
                stay.status, stay.note = "confirmed", "lost"
                stay.save()
                raise Refused
        except Refused:
            pass
        stay = Reservation.objects.get()
        assert stay.status == "pending"
        stay.note = "kept"
        stay.save()
    work()
    assert effects() == []
    with transaction.atomic():
        stay.status = "confirmed"
        stay.save()
    work()
    assert effects() == ["confirmed kept"]


def test_18_turned_true_and_false_again_in_one_transaction_does_not_occur(work):
    with transaction.atomic():
        stay = Reservation.objects.create(status="confirmed")
        stay.status = "pending"
        stay.save()
    work()
    assert effects() == []
    assert status_of(stay, "reservation_confirmed") == "pending"


def test_18_what_a_hook_does_after_the_commit_is_another_transaction(work):
    with transaction.atomic():
        Reservation.objects.create(note="outer")
        transaction.on_commit(lambda: Reservation.objects.create(note="hook", status="confirmed"))
        transaction.on_commit(lambda: engine.start("waiter"))
    work()
    assert effects() == ["confirmed hook"]
    assert WorkflowRun.objects.get().status == "suspended"


def test_18_a_hook_of_others_that_raises_costs_only_the_fast_path(work, clock):
    """Django skips the remaining hooks after a hook that raises: a worker makes the event occur later."""

    def refuse():
        raise Refused

    with pytest.raises(Refused), transaction.atomic():
        transaction.on_commit(refuse)
        stay = Reservation.objects.create(note="late", status="confirmed")
    assert status_of(stay, "reservation_confirmed") == "pending"
    clock.tick(timedelta(seconds=11))
    work()
    assert effects() == ["confirmed late"]


def test_18_a_cancellation_that_is_rolled_back_never_was(work):
    run = engine.start("waiter")
    companion = AgentManager.spawn("companion")
    work()
    with pytest.raises(Refused), transaction.atomic():
        engine.cancel(run)
        AgentManager.complete(companion)
        raise Refused
    engine.signal("word", {"word": "still there"})
    Reservation.objects.create(note="x", status="confirmed")
    work()
    assert sorted(effects()) == ["companion", "confirmed x", "heard still there"]


def test_18_a_deletion_that_is_rolled_back_cancels_nothing(work, clock):
    stay = Reservation.objects.create(status="confirmed", checkin_at=clock() + timedelta(days=1))
    with pytest.raises(Refused), transaction.atomic():
        stay.delete()
        raise Refused
    stay = Reservation.objects.get()
    assert status_of(stay, "checkin_due") == "pending"
    clock.tick(timedelta(days=1))
    work()
    assert status_of(stay, "checkin_due") == "processed"
