"""16, a singleton is spawned twice at once: one agent is active, and it also gets the event of the other spawn."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from django_ai.automation import AgentManager, agent, handler
from django_ai.automation.agents import activation
from django_ai.automation.agents.models import AgentRoute, AgentRun, HandlerExecution
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.runtimes.tasks import poll_due
from tests.apps.front_desk.models import Booking, Person
from tests.support.agents import CountingGuest, counting_companion
from tests.support.front_desk import agents, answers, book, confirm, the_agent
from tests.support.race import Behind, once, row_locks, together, together_with_workers
from tests.support.rows import effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def companion():
    return counting_companion()


def test_16_eight_spawn_one_singleton(companion):
    guest = Person.objects.create()
    spawned = []

    def spawn():
        spawned.append(AgentManager.spawn("companion", guest_id=guest.pk).pk)

    assert together(*[spawn] * 8) == []
    assert len(set(spawned)) == 1
    assert len(agents()) == 1
    assert AgentRoute.objects.filter(unique_key__isnull=False).count() == 1


def test_16_eight_spawn_one_singleton_with_eight_events(companion):
    guest = Person.objects.create()
    bookings = [book(guest) for _ in range(8)]
    AgentRun.objects.all().delete()  # this test counts only agents that it spawns itself
    events = [event_of(each, "booking_created") for each in bookings]
    assert together(*[lambda event=event: AgentManager.spawn("companion", event=event) for event in events]) == []
    drain()
    assert len(agents()) == 1
    assert sorted(effects()) == sorted(f"created {each.pk}" for each in bookings)
    assert answers() == [("created", "completed")] * 8


def test_16_eight_events_spawn_one_singleton_and_each_is_handled_once(companion):
    guest = Person.objects.create()

    def booked():
        booking = book(guest)
        AgentManager.spawn("companion", event=event_of(booking, "booking_created"))
        confirm(booking)

    assert together_with_workers(*[booked] * 8) == []
    drain()
    assert len(agents()) == 1
    pks = [str(pk) for pk in Booking.objects.values_list("pk", flat=True)]
    assert len(pks) == 8
    assert sorted(effects()) == sorted([f"created {pk}" for pk in pks] + [f"confirmed {pk}" for pk in pks])
    assert set(HandlerExecution.objects.values_list("status", flat=True)) == {"completed"}


@pytest.fixture
def second(companion):
    """Return a booking, its agent that another worker has leased, and a second booking of the same guest."""
    first = book()
    drain()
    living = the_agent()
    AgentRun.objects.update(lease="somebody:1:x", wake_at=living.created_at + timedelta(hours=1))
    return first, living, book(first.guest)


def handled_by_a_new_one(first, second):
    assert [run.status for run in agents()] == ["completed", "active"]
    assert effects() == [f"created {first.pk}", f"created {second.pk}"]
    poll_due()
    assert HandlerExecution.objects.filter(status="pending").count() == 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_16_the_one_that_lives_ends_before_it_is_given_the_event(second, monkeypatch, moment):
    """The active agent ends during the redirect of the second booking's event: a new agent handles the event."""
    first, living, booking = second
    once(monkeypatch, activation, "singleton_holder", **{moment: lambda: AgentManager.complete(living.pk)})
    drain()
    handled_by_a_new_one(first, booking)


def test_16_the_one_that_lives_moves_to_another_match_before_it_is_given_the_event(second, monkeypatch):
    _, living, booking = second
    place = AgentRoute.objects.filter(unique_key__isnull=False)
    once(monkeypatch, activation, "singleton_holder", after=lambda: place.update(unique_key="another", key="another"))
    drain()
    (new,) = AgentRun.objects.exclude(pk=living.pk)
    assert (new.status, new.event.entity) == ("active", booking)
    assert answers(run=new) == [("created", "completed")]


def test_16_the_one_that_lives_ends_with_the_event_in_its_mailbox(second, monkeypatch):
    first, living, _ = second
    once(monkeypatch, activation, "touch", before=lambda: AgentManager.complete(living.pk))
    drain()
    assert [run.status for run in agents()] == ["completed"]
    assert effects() == [f"created {first.pk}"]
    assert [status for _, status in answers()] == ["completed", "cancelled"]


@row_locks
def test_16_the_end_of_the_one_that_lives_waits_for_the_event_that_it_is_given(second, monkeypatch):
    """The active agent cannot end before the commit of a redirected event: otherwise no agent would handle it."""
    _, living, _ = second
    ends, put = [], activation.put_in_mailbox

    def give(executions):
        ends.append(Behind(lambda: AgentManager.complete(living.pk)))
        put(executions)

    monkeypatch.setattr(activation, "put_in_mailbox", give)
    drain()
    assert [end.join() for end in ends] == [True]
    assert [run.status for run in agents()] == ["completed"]
    assert [status for _, status in answers()] == ["completed", "cancelled"]


def test_16_the_second_that_is_spawned_by_hand_brings_its_own_context():
    """The worker that activates the second agent does not know the arguments that code gave to ``create_context``."""

    @agent("guarded", match={"guest_id": "{{ ctx.guest_id }}"}, singleton=True)
    class Guarded:
        Context = CountingGuest

        @classmethod
        def create_context(cls, event, *, guest):
            return cls.Context(guest_id=guest.pk)

        @handler("booking_created")
        def created(self, event):
            leave(f"created {event.entity_id}")

    guest = Person.objects.create()
    first, second = book(guest), book(guest)
    one = AgentManager.spawn("guarded", event_of(first, "booking_created"), guest=guest)
    drain()
    assert AgentManager.spawn("guarded", event_of(second, "booking_created"), guest=guest).pk == one.pk
    AgentManager.complete(one)
    drain()
    handled_by_a_new_one(first, second)


@row_locks
@pytest.mark.parametrize("first_commits", [True, False])
def test_16_the_second_waits_for_the_first_ones_commit(first_commits, companion):
    """The second spawn waits for the first one's commit and returns its agent; after a rollback it spawns a new one."""
    guest = Person.objects.create()
    with transaction.atomic():
        first = AgentManager.spawn("companion", guest_id=guest.pk)
        behind = Behind(lambda: AgentManager.spawn("companion", guest_id=guest.pk).pk)
        if not first_commits:
            transaction.set_rollback(True)
    second = behind.join()
    assert (second == first.pk) is first_commits
    assert [run.pk for run in agents()] == [second]
    assert AgentRoute.objects.filter(unique_key__isnull=False).count() == 1


@row_locks
@pytest.mark.parametrize("ends", [True, False])
def test_16_the_second_comes_while_the_first_ends(ends, companion):
    """A spawn waits for the uncommitted end of the active agent; it returns a new agent, or the old one on rollback."""
    guest = Person.objects.create()
    first = AgentManager.spawn("companion", guest_id=guest.pk)
    with transaction.atomic():
        AgentManager.complete(first.pk)
        behind = Behind(lambda: AgentManager.spawn("companion", guest_id=guest.pk).pk)
        if not ends:
            transaction.set_rollback(True)
    second = behind.join()
    assert (second != first.pk) is ends
    assert AgentRun.objects.unfinished().get().pk == second


def test_16_two_events_of_one_commit_spawn_one(companion):
    guest = Person.objects.create()
    with transaction.atomic():
        bookings = [Booking.objects.create(guest=guest) for _ in range(2)]
    assert together(drain, drain) == []
    drain()
    assert [run.status for run in agents()] == ["active"]
    assert sorted(effects()) == sorted(f"created {each.pk}" for each in bookings)
