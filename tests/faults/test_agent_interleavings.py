"""Agents and claims under interference: unusual values, other versions of the code, and rows that are deleted.

Each test reproduces a former bug, found in an adversarial review of the code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from pydantic import BaseModel

from django_ai.automation import (
    AgentManager,
    Retry,
    agent,
    claims,
    complete,
    engine,
    handler,
    on_event,
    step,
    wait_for_event,
    workflow,
)
from django_ai.automation.agents.models import AgentRoute, AgentRun, HandlerExecution
from django_ai.automation.agents.reconcile import reconcile_agents
from django_ai.automation.agents.routing import keys_of
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.events.matching.match import address
from django_ai.automation.events.matching.typed_values import canonical
from django_ai.automation.events.models import Event, EventClaim
from django_ai.automation.queues.drain import drain
from django_ai.automation.testing import time_machine
from django_ai.automation.workflows import subscriber
from tests.apps.reservations.models import Document, Reservation
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
ROOT = Path(__file__).resolve().parents[2]


class Nothing(BaseModel):
    pass


@pytest.fixture
def owner(work) -> AgentRun:
    """Return an active agent, which can own claims."""

    @agent("owner")
    class Owner:
        Context = Nothing

        @handler("inspection_due")
        def never(self):
            raise AssertionError

    run = AgentManager.spawn("owner")
    work()
    return run


class TestOddValues:
    """``C++`` is not a valid regular expression, and PostgreSQL raises an error for it."""

    def test_the_match_of_one_agent_stops_no_event_for_the_others(self, work):
        @agent("watcher", match={"kind__iregex": "{{ ctx.word }}"})
        class Watcher:
            class Context(BaseModel):
                word: str

            @handler("document_uploaded")
            def seen(self, ctx):
                leave(ctx.word)

        for word in ("passport", "C++"):
            AgentManager.spawn("watcher", word=word)
        work()
        Document.objects.create(reservation=Reservation.objects.create())
        work()
        assert effects() == ["passport"]
        assert not Event.objects.exclude(pending_notifications=[]).exists()

    def test_a_claim_of_such_a_match_covers_nothing(self, owner, work):
        claims.hold("document_uploaded", {"kind__iregex": "C++"}, owner=owner)

        @agent("reader", spawn_on="document_uploaded")
        class Reader:
            Context = Nothing

            @handler("document_uploaded")
            def read(self):
                leave("read")

        Document.objects.create(reservation=Reservation.objects.create())
        work()
        assert effects() == ["read"]

    def test_a_wait_of_such_a_match_stops_no_other(self, work):
        for name, lookup in (("odd", "kind__iregex"), ("plain", "kind")):

            @workflow(name)
            class Waits:
                class Context(BaseModel):
                    word: str

                wanted = {lookup: "{{ ctx.word }}"}

                @step(start=True)
                def listen(self):
                    return wait_for_event("document_uploaded", match=self.wanted, then=self.heard)

                @step()
                def heard(self):
                    leave(self.context.word)
                    return complete()

        engine.start("odd", word="C++")
        engine.start("plain", word="passport")
        work()
        Document.objects.create(reservation=Reservation.objects.create())
        work()
        assert effects() == ["passport"]


class TestOtherCode:
    def test_a_worker_with_old_code_leaves_no_route_of_a_context_that_is_gone(self, clock, work):
        def deploy(new: bool) -> None:
            @agent("roll", match={"note": "{{ ctx.note }}"})
            class Roll:
                class Context(BaseModel):
                    note: str

                @handler("reservation_confirmed")
                def move(self, ctx):
                    ctx.note = "b"

                if new:

                    @handler("document_uploaded", match={"kind": "{{ ctx.note }}"})
                    def read(self, event):
                        leave(event.entity.kind)

        deploy(new=False)
        AgentManager.spawn("roll", note="a")
        work()
        deploy(new=True)
        reconcile_agents(clock.now)
        deploy(new=False)
        stay = Reservation.objects.create(status="confirmed", note="a")
        work()
        deploy(new=True)
        reconcile_agents(clock.now)
        for kind in ("a", "b"):
            Document.objects.create(reservation=stay, kind=kind)
        work()
        assert effects() == ["b"]

    def test_a_new_offset_is_not_made_up_for_on_dates_long_past(self, clock, work):
        stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now)
        clock.tick(HOUR)
        work()
        clock.tick(timedelta(days=700))

        @on_event("checkin_due", offset=2 * HOUR)
        def ask(event):
            leave("asked")

        for status in ("pending", "confirmed"):
            stay.status = status
            stay.save()
            work()
        assert effects() == []

    def test_the_sweep_does_not_make_up_for_it_either(self, clock, work):
        from django_ai.automation.queues.runtimes.tasks import poll_due

        @on_event("checkin_due", offset=timedelta(days=30))
        def much_later(event):
            leave("a month later")

        Reservation.objects.create(status="confirmed", checkin_at=clock.now + HOUR)
        clock.tick(2 * HOUR)
        work()

        @on_event("checkin_due", offset=HOUR)
        def ask(event):
            leave("asked")

        clock.tick(timedelta(days=10))
        poll_due()
        work()
        assert effects() == []
        clock.tick(timedelta(days=20))
        work()
        assert effects() == ["a month later"]

    def test_what_is_overdue_because_nobody_was_running_still_fires(self, clock, work):
        @on_event("checkin_due", offset=HOUR)
        def ask(event):
            leave("asked")

        Reservation.objects.create(status="confirmed", checkin_at=clock.now + HOUR)
        clock.tick(timedelta(days=10))
        work()
        assert effects() == ["asked"]

    def test_an_event_that_goes_by_another_name_now_still_runs_what_was_put(self, clock, declare, work):
        declare(
            Reservation,
            EventDefinition("due:{{ instance.status }}", date_field="checkin_at"),
            EventDefinition("made"),
        )

        @agent("renamed", spawn_on="made")
        class Renamed:
            class Context(BaseModel):
                tries: int = 0

            @handler("due:confirmed", offset=-3 * HOUR)
            def run(self, ctx):
                ctx.tries += 1
                if ctx.tries == 1:
                    raise ValueError("once more")
                leave("ran")

        stay = Reservation.objects.create(status="confirmed", checkin_at=clock.now + 2 * HOUR)
        work()
        stay.status = "pending"
        stay.save()
        clock.tick(timedelta(seconds=5))
        work()
        assert effects() == ["ran"]


class TestFences:
    def test_what_a_handler_does_to_its_run_leaves_the_workers_fence_alone(self, work):
        @agent("fence", spawn_on="reservation_confirmed")
        class Fence:
            class Context(BaseModel):
                number: int = 0

            @handler("reservation_confirmed", atomic=False)
            def late(self, run):
                # Meanwhile the lease has expired, and another worker has committed its own progress.
                AgentRun.objects.filter(pk=run.pk).update(lease="other", seq=run.seq + 5, data={"number": 42})
                run.refresh_from_db()
                AgentManager.complete(run)

        Reservation.objects.create(status="confirmed")
        work()
        run = AgentRun.objects.get()
        assert (run.lease, run.data, run.status) == ("other", {"number": 42}, "active")

    def test_an_execution_that_goes_while_it_runs_keeps_nothing_and_rests_a_moment(self, clock, work):
        @agent("gone", spawn_on="reservation_confirmed")
        class Gone:
            Context = Nothing

            @handler("reservation_confirmed", atomic=False)
            def vanish(self):
                HandlerExecution.objects.filter(handler="vanish").delete()

            @handler("reservation_confirmed")
            def other(self):
                leave("other")

        Reservation.objects.create(status="confirmed")
        work()
        run = AgentRun.objects.get()
        assert (run.lease, run.losses, run.status) == (None, 0, "active")
        clock.tick(timedelta(seconds=1))
        work()
        assert effects() == ["other"]

    def test_a_singletons_place_is_not_given_up_by_half(self):
        """The outer transaction never commits, and the handler has no transaction of its own."""

        @agent("mover", match={"note": "{{ ctx.note }}"}, singleton=True)
        class Mover:
            class Context(BaseModel):
                note: str

            @handler("reservation_confirmed", atomic=False)
            def move(self, ctx):
                ctx.note = "b"

        with transaction.atomic(), time_machine() as machine:
            one, _ = (AgentManager.spawn("mover", note=note) for note in "ab")
            machine.process()
            Reservation.objects.create(status="confirmed", note="a")
            machine.process()
            one.refresh_from_db()
            assert one.data == {"note": "a"}
            assert HandlerExecution.objects.get().status == "failed"
            assert AgentRoute.objects.filter(run=one, unique_key__isnull=False).count() == 1


class TestVanishedRows:
    def test_a_second_singleton_whose_event_is_gone_goes_too(self):
        @agent("lonely", spawn_on="reservation_confirmed", match={"note": "{{ ctx.note }}"}, singleton=True)
        class Lonely:
            class Context(BaseModel):
                note: str = "a"

            @handler("document_uploaded")
            def never(self):
                pass

        AgentManager.spawn("lonely")
        drain()
        Reservation.objects.create(status="confirmed")
        Event.objects.all().delete()
        assert drain(budget=timedelta(seconds=5)) < 5
        assert AgentRun.objects.count() == 1

    def test_one_event_row_that_vanishes_leaves_the_others_of_its_commit(self, declare, work):
        committed = []

        def odd(reservation):
            if committed:
                Event.objects.filter(event_name="odd").delete()
                raise ValueError("and its row is gone")
            return True

        declare(Reservation, EventDefinition("good"), EventDefinition("odd", condition=odd))

        @on_event("good")
        def good(event):
            leave("good")

        with transaction.atomic():
            Reservation.objects.create()
            committed.append(True)
        work()
        assert effects() == ["good"]


class TestClaimsInBetween:
    def test_a_claim_between_two_tries_does_not_end_what_has_begun(self, clock, owner, work):
        @agent("worker", spawn_on="reservation_confirmed", default_retry=Retry(max_attempts=3))
        class Worker:
            class Context(BaseModel):
                tries: int = 0

            @handler("reservation_confirmed", atomic=False)
            def act(self, ctx):
                ctx.tries += 1
                if ctx.tries == 1:
                    raise ValueError("half done")
                leave("done")

        Reservation.objects.create(status="confirmed")
        work()
        claims.hold("reservation_confirmed", owner=owner)
        clock.tick(timedelta(seconds=5))
        work()
        assert effects() == ["done"]

    def test_occurrences_count_where_only_offsets_are_heard(self, clock, monkeypatch, owner, work):
        monkeypatch.setattr(subscriber, "all_workflows", list)

        @agent("late", spawn_on="reservation_confirmed")
        class Late:
            Context = Nothing

            @handler("checkin_due", offset=HOUR)
            def come(self):
                leave("came")

        for hours in (1, 3):
            Reservation.objects.create(status="confirmed", checkin_at=clock.now + hours * HOUR)
        work()
        claims.hold("checkin_due", owner=owner, expires_in=None, expires_after_events=1)
        for _ in range(5):
            clock.tick(HOUR)
            work()
        assert effects() == ["came"]

    def test_ended_claims_are_found_in_a_few_statements(self, clock, owner):
        from django_ai.automation.events.retention import prune_claims
        from django_ai.automation.queues.periodic_tasks import TimeSlice

        for number in range(100):
            claims.hold("document_uploaded", {"kind": str(number)}, owner=owner, expires_in=None)
        AgentRun.objects.update(status="completed")
        with CaptureQueriesContext(connection) as queries:
            assert prune_claims(TimeSlice(clock.now + timedelta(days=31))).done == 100
        assert len(queries) <= 30
        assert not EventClaim.objects.exists()


@pytest.mark.slow
def test_catching_up_does_not_go_through_what_has_nothing_to_say(clock, work):
    @agent("hotel", match={"note": "{{ ctx.hotel }}"})
    class Hotel:
        class Context(BaseModel):
            hotel: str

        @handler("checkin_due", offset=-3 * HOUR)
        def soon(self):
            leave("soon")

    for _ in range(1100):
        Reservation.objects.create(status="confirmed", note="h", checkin_at=clock.now + timedelta(days=30))
    AgentManager.spawn("hotel", hotel="h")
    with CaptureQueriesContext(connection) as queries:
        work()
    assert len(queries) < 50


class TestKeys:
    def test_no_value_can_pass_for_the_border_between_two(self):
        one = address("s", {"a": "x\x1ftext:y", "b": "z"}, [])
        assert one.keys != address("s", {"a": "x", "b": "y\x1ftext:z"}, []).keys

    def test_json_has_one_key_whatever_its_order(self):
        assert canonical({"a": 1, "b": [2]}) == canonical({"b": [2], "a": 1})

    def test_a_field_compared_twice_must_fit_both(self):
        @agent("both", match={"status": "confirmed", "status__in": "{{ ctx.statuses }}"})
        class Both:
            class Context(BaseModel):
                statuses: list[str]

            @handler("reservation_confirmed")
            def never(self):
                pass

        definition = Both.__agent__
        some, none = (keys_of(definition, AgentRun(), Both.Context(statuses=each)) for each in (["confirmed"], ["new"]))
        assert (len(some), len(none)) == (1, 0)

    def test_a_set_gives_one_singleton_in_every_process(self):
        code = """
import django
django.setup()
from pydantic import BaseModel
from django_ai.automation import agent, handler
from django_ai.automation.agents.routing import singleton_key

@agent("s", match={"status__in": "{{ ctx.wanted }}"}, singleton=True)
class Sets:
    class Context(BaseModel):
        wanted: set[str]

    @handler("reservation_confirmed")
    def go(self):
        pass

print(singleton_key(Sets.__agent__, None, Sets.Context(wanted={"a", "b", "c", "d", "e"})))
"""
        found = set()
        for seed in ("0", "1", "2"):
            environment = {
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            }
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            found.add(done.stdout)
        assert len(found) == 1
