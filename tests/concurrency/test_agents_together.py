"""Concurrent agents, events and workers: one run of a singleton, one handler at a time, and no lost event.

Where an order matters, the test enforces it: another thread, with its own connection, acts at a named point of the
tested code.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from django_ai.automation import AgentManager, agent, claims, handler
from django_ai.automation.agents import activation, agent_session, models, runner, subscriber
from django_ai.automation.agents.models import AgentRoute, AgentRun, HandlerExecution
from django_ai.automation.conf import conf
from django_ai.automation.events import occurrence
from django_ai.automation.exceptions import ClaimedError
from django_ai.automation.queues.claim import new_token
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.runtimes.tasks import poll_due
from tests.apps.front_desk.models import Booking, Message, Person
from tests.apps.reservations.models import Effect
from tests.support.agents import CountingGuest, counting_companion
from tests.support.front_desk import agents, answers, book, confirm, the_agent, write
from tests.support.marks import not_on, only_on
from tests.support.race import elsewhere, once, together, together_with_workers
from tests.support.rows import effects, event_of, leave

pytestmark = pytest.mark.django_db(transaction=True)

one_writer = not_on(
    "sqlite",
    reason="SQLite has one writer: no other connection can record an event while this transaction is open",
)


@pytest.fixture
def companion():
    return counting_companion()


# -- one claim ---------------------------------------------------------------------------------------------------------


def test_of_two_that_claim_an_event_at_once_one_does(companion):
    runs = [AgentManager.spawn("companion", guest_id=number) for number in range(6)]
    held, refused = [], []

    def hold(run):
        try:
            held.append(claims.hold("message_received", {"sender_id": 1}, owner=run).owner_id)
        except ClaimedError:
            refused.append(run.pk)

    assert together(*[lambda run=run: hold(run) for run in runs]) == []
    assert len(held) == 1
    assert claims.holder("message_received", {"sender_id": 1}).owner_id == held[0]
    assert sorted(held + refused) == [run.pk for run in runs]


# -- one handler at a time ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_events_on_one_agent(companion):
    guest = Person.objects.create()
    AgentManager.spawn("companion", guest_id=guest.pk)
    drain()

    def writes(author):
        for number in range(10):
            write(guest, f"{author} {number}")

    assert together_with_workers(*[lambda author=author: writes(author) for author in range(5)]) == []
    drain()
    assert the_agent().data["count"] == 50
    assert Effect.objects.count() == 50
    assert answers() == [("heard", "completed")] * 50
    assert the_agent().wake_at is None


def test_two_workers_never_overlap_in_one_agent():
    inside, entered = [], []

    @agent("alone", match={"guest_id": "{{ ctx.guest_id }}"})
    class Alone:
        Context = CountingGuest

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, atomic=False)
        def heard(self, ctx, event):
            assert inside == []
            inside.append(event.pk)
            entered.append(event.pk)
            ctx.count += 1
            elsewhere(drain)  # another worker polls, and finds nothing due
            inside.clear()

    guest = Person.objects.create()
    AgentManager.spawn("alone", guest_id=guest.pk)
    drain()
    for number in range(5):
        write(guest, str(number))
    assert together(drain, drain, drain) == []
    drain()
    assert len(entered) == len(set(entered)) == 5
    assert the_agent().data["count"] == 5
    assert answers() == [("heard", "completed")] * 5


def test_two_agents_do_overlap():
    """The handlers of one agent do not block the handlers of another."""
    meet = threading.Barrier(2)

    @agent("sociable", match={"guest_id": "{{ ctx.guest_id }}"})
    class Sociable:
        Context = CountingGuest

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, atomic=False)
        def heard(self, ctx):
            meet.wait(30)
            ctx.count += 1

    guests = [Person.objects.create(), Person.objects.create()]
    runs = [AgentManager.spawn("sociable", guest_id=guest.pk) for guest in guests]
    drain()
    for guest in guests:
        write(guest)

    def work_on(run):
        AgentRun.objects.filter(pk=run.pk).update(lease=new_token(), wake_at=timezone.now() + conf().LEASE)
        AgentRun.objects.get(pk=run.pk).perform(timezone.now)

    assert together(*[lambda run=run: work_on(run) for run in runs]) == []
    assert [run.data["count"] for run in agents()] == [1, 1]


# -- no event is lost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("atomic", [False, pytest.param(True, marks=one_writer)])
def test_an_event_that_occurs_while_a_handler_is_under_way(atomic):
    during: list[Callable[[], object]] = []

    @agent("busy", match={"guest_id": "{{ ctx.guest_id }}"})
    class Busy:
        Context = CountingGuest

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"}, atomic=atomic)
        def heard(self, ctx, event):
            ctx.heard.append(event.entity.text)
            while during:
                elsewhere(during.pop())

    guest = Person.objects.create()
    AgentManager.spawn("busy", guest_id=guest.pk)
    drain()
    during += [lambda: write(guest, "meanwhile"), drain]
    write(guest, "first")
    drain()
    assert the_agent().data["heard"] == ["first", "meanwhile"]
    assert the_agent().wake_at is None


LEAVING = [
    (agent_session, "pending_in", "before"),
    (agent_session, "pending_in", "after"),  # the list that was read is no longer complete
    (agent_session, "touch", "before"),  # the lease is released, but the last check of the mailbox is not done
    (agent_session, "touch", "after"),
    (models, "ring_after_commit", "before"),
]


@pytest.mark.parametrize(("module", "name", "moment"), LEAVING)
def test_an_event_that_occurs_while_the_worker_takes_its_leave(companion, monkeypatch, module, name, moment):
    guest = Person.objects.create()
    AgentManager.spawn("companion", guest_id=guest.pk)
    drain()
    write(guest, "first")
    acted = once(monkeypatch, module, name, **{moment: lambda: write(guest, "meanwhile")})
    drain()
    assert acted
    assert effects() == ["heard first", "heard meanwhile"]
    assert (the_agent().wake_at, the_agent().lease) == (None, None)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["put_in_mailbox", "touch"])
def test_the_worker_comes_while_subscribers_are_notified(companion, monkeypatch, name, moment):
    guest = Person.objects.create()
    AgentManager.spawn("companion", guest_id=guest.pk)
    drain()
    write(guest, "first")
    acted = once(monkeypatch, subscriber, name, **{moment: drain})
    write(guest, "second")
    assert acted
    drain()
    assert effects() == ["heard first", "heard second"]


@pytest.mark.slow
def test_the_worker_dies_before_its_last_look(companion, monkeypatch):
    """The event reached the mailbox while the agent was leased. After the worker's death, the poller finds it."""
    guest = Person.objects.create()
    AgentManager.spawn("companion", guest_id=guest.pk)
    drain()
    write(guest, "first")
    once(monkeypatch, agent_session, "pending_in", after=lambda: write(guest, "meanwhile"))

    def die(pks):
        raise SystemExit

    monkeypatch.setattr(agent_session, "touch", die)
    with pytest.raises(SystemExit):
        drain()
    monkeypatch.undo()
    assert drain() == 0
    assert effects() == ["heard first"]
    poll_due()
    drain()
    assert effects() == ["heard first", "heard meanwhile"]


BORN = [
    (runner, "activate", "before"),
    (activation, "keys_of", "before"),
    (agent_session, "catch_up", "before"),  # its routes are committed, but it has not caught up yet
    (agent_session, "catch_up", "after"),  # it has caught up, but has not stored this yet
    (agent_session, "pending_in", "before"),
]


def born_meanwhile(booking: Booking) -> None:
    """Record two events during the activation of the agent: one that its match finds, and one of its own entity."""
    guest = Person.objects.get(pk=booking.guest_id)
    write(guest, "meanwhile")
    confirm(booking)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name", "moment"), BORN)
def test_events_that_occur_while_an_agent_comes_to_life(companion, monkeypatch, module, name, moment):
    if connection.vendor == "sqlite" and name == "keys_of":
        pytest.skip("SQLite has one writer: no other connection can write while the spawning transaction is open")
    booking = book()
    acted = once(monkeypatch, module, name, **{moment: lambda: born_meanwhile(booking)})
    drain()
    assert acted
    expected = [f"confirmed {booking.pk}", f"created {booking.pk}", "heard meanwhile"]
    assert sorted(effects()) == expected
    drain()
    poll_due()
    assert sorted(effects()) == expected
    assert len(answers()) == 3


@one_writer
@pytest.mark.parametrize("moment", ["before", "after"])
def test_events_that_occur_between_install_and_commit(companion, monkeypatch, moment):
    booking = book()
    acted = once(monkeypatch, activation, "install_routes", **{moment: lambda: born_meanwhile(booking)})
    drain()
    assert acted
    assert sorted(effects()) == [f"confirmed {booking.pk}", f"created {booking.pk}", "heard meanwhile"]


@pytest.mark.slow
@one_writer
def test_an_event_that_arrives_before_the_agent_and_commits_after_it(companion, monkeypatch):
    """Keys are not allocated in commit order, so the agent's position is below the keys of open transactions."""
    guest = Person.objects.create()
    real, bookings = occurrence._fan_out, []

    def slow(readings, now):
        real(readings, now)
        if not bookings:
            bookings.append(None)
            elsewhere(lambda: bookings.append(book(guest)))

    monkeypatch.setattr(occurrence, "_fan_out", slow)
    monkeypatch.setattr(occurrence, "_occur_in_one_statement", lambda *arguments: [])  # it cannot be held
    message = write(guest, "slow")
    booking = bookings[-1]
    (run,) = agents("pending")
    first, second = event_of(message, "message_received"), event_of(booking, "booking_created")
    assert run.position < first.position < second.position
    drain()
    assert sorted(effects()) == [f"created {booking.pk}", "heard slow"]
    poll_due()
    drain()
    assert len(effects()) == 2


@one_writer
def test_events_that_occur_before_the_transaction_that_spawns_by_hand_commits(companion):
    booking = book()
    AgentRun.objects.all().delete()
    with transaction.atomic():
        AgentManager.spawn("companion", event=event_of(booking, "booking_created"))
        elsewhere(lambda: born_meanwhile(booking))
        elsewhere(drain)
    drain()
    assert sorted(effects()) == [f"confirmed {booking.pk}", f"created {booking.pk}", "heard meanwhile"]


@only_on("postgresql", reason="the test uses the lock_timeout of PostgreSQL")
def test_the_worker_lets_the_agent_go_before_the_transaction_that_gives_it_an_event_commits(companion):
    """The worker's last check of the mailbox cannot see an uncommitted event."""
    guest = Person.objects.create()
    first, second = book(guest), book(guest)
    AgentRun.objects.all().delete()
    run = AgentManager.spawn("companion", event=event_of(first, "booking_created"))
    drain()
    AgentRun.objects.update(lease="somebody:1:x", wake_at=run.created_at + timedelta(hours=1))

    def let_go():
        with contextlib.suppress(OperationalError), connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '200ms'")  # the update may wait for the end of that transaction
            AgentRun.objects.filter(pk=run.pk).update(lease=None, wake_at=None)
            models.touch([run.pk])

    with transaction.atomic():
        AgentManager.spawn("companion", event=event_of(second, "booking_created"))
        elsewhere(let_go)
    elsewhere(let_go)
    drain()
    assert effects() == [f"created {first.pk}", f"created {second.pk}"]


@one_writer
def test_a_handler_changes_its_agents_match_while_the_event_is_notified():
    """Events before the handler's commit are matched with the old value, and events after it with the new one."""
    during: list[Callable[[], object]] = []

    @agent("moving", match={"guest_id": "{{ ctx.guest_id }}"})
    class Moving:
        Context = CountingGuest

        @handler("booking_created", match={})
        def move(self, ctx, event):
            ctx.guest_id = event.entity.guest_id
            while during:
                elsewhere(during.pop())

        @handler("message_received", match={"sender_id": "{{ ctx.guest_id }}"})
        def heard(self, event):
            leave(event.entity.text)

    old, new = Person.objects.create(), Person.objects.create()
    AgentManager.spawn("moving", guest_id=old.pk)
    drain()
    during.append(lambda: write(old, "old, before the commit"))
    book(new)
    drain()
    write(old, "old, after it")
    write(new, "new, after it")
    drain()
    assert effects() == ["old, before the commit", "new, after it"]


@pytest.mark.slow
def test_the_agent_is_ended_while_an_event_is_notified(companion, monkeypatch):
    guest = Person.objects.create()
    run = AgentManager.spawn("companion", guest_id=guest.pk)
    drain()
    once(monkeypatch, subscriber, "put_in_mailbox", before=lambda: AgentManager.complete(run.pk))
    write(guest, "too late")
    drain()
    poll_due()
    assert effects() == []
    assert answers() == [("heard", "cancelled")]
    assert Message.objects.count() == 1


@pytest.mark.slow
def test_many_lives_and_deaths_at_once(companion):
    """Bookings, spawns, completions and workers run concurrently.

    Each event is handled at most once by one agent, and at the end at most one singleton is unfinished.
    """
    guest = Person.objects.create()

    def lives():
        for _ in range(4):
            booking = book(guest)
            run = AgentManager.spawn("companion", event=event_of(booking, "booking_created"))
            AgentManager.complete(run)

    assert together_with_workers(*[lives] * 4, workers=2) == []
    drain()
    poll_due()
    assert len(agents("active", "pending", "parked", "failed")) <= 1
    assert len(effects()) == len(HandlerExecution.objects.filter(status="completed"))
    assert HandlerExecution.objects.filter(status__in=["pending", "failed", "parked"]).count() == 0
    # Only active agents have routes.
    assert AgentRoute.objects.exclude(run__status="active").count() == 0
