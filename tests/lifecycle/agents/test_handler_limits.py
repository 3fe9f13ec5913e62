"""Limits of ``@handler``: concurrency, throttle and rate limit."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation import AgentManager, Concurrency, RateLimit, Retry, Throttle, agent, handler
from django_ai.automation.agents import agent_session
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.conf import conf
from django_ai.automation.queues.claim import claim_rows
from django_ai.automation.queues.operations.explanations import explain
from django_ai.automation.testing import time_machine
from tests.apps.front_desk.models import Message, Person
from tests.support.limits import HOUR, MINUTE, SECOND, slots
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


class Guest(BaseModel):
    guest_id: int
    town: str = ""


def companion(**options: object) -> None:
    @agent(
        "companion", match={"sender_id": "{{ ctx.guest_id }}"}, default_retry=Retry(max_attempts=2, base_delay=MINUTE)
    )
    class Companion:
        Context = Guest

        @handler("message_received", **options)
        def limited(self, event):
            leave(f"limited {event.entity.text}")
            if event.entity.text.startswith("fail"):
                raise RuntimeError("no")

        @handler("message_received")
        def free(self, event):
            leave(f"free {event.entity.text}")


def guest(town: str = "") -> Person:
    person = Person.objects.create()
    AgentManager.spawn("companion", guest_id=person.pk, town=town)
    return person


def write(person: Person, *texts: str) -> None:
    for text in texts:
        Message.objects.create(sender=person, text=text)


def executions(method: str = "limited") -> list[str]:
    return list(HandlerExecution.objects.filter(handler=method).order_by("pk").values_list("status", flat=True))


def held_by_a_dead_worker(clock, run: AgentRun) -> None:
    """Let a worker acquire what the first execution needs, and die before it has run it."""

    class DeadError(Exception):
        pass

    def die(*arguments: object, **options: object) -> bool:
        raise SystemExit

    (row,) = claim_rows(AgentRun, [run.pk], clock.now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_session, "attempt", die)
        with pytest.raises(SystemExit):
            row.perform(lambda: clock.now)


def test_an_execution_waits_while_as_many_run_as_the_limit_says(clock, work):
    companion(concurrency=Concurrency(1))
    one, other = guest(), guest()
    work()
    write(one, "a")
    write(other, "b")
    first, _ = AgentRun.objects.order_by("pk")
    held_by_a_dead_worker(clock, first)
    work()
    assert effects() == ["free b"], "the rest of the mailbox goes on"
    assert executions() == ["pending", "waiting"]
    assert "a slot of the limit 'concurrency' of handler companion.limited on message_received" in [
        each.waits_for for each in explain(clock.now, ["handler execution"])
    ]
    clock.tick(conf().LEASE + SECOND)
    work()
    assert effects() == ["free b", "limited a", "free a", "limited b"]
    assert (set(executions()), slots()) == ({"completed"}, {})


def test_the_key_reads_the_agents_context(clock, work):
    companion(concurrency=Concurrency(1, key="{{ ctx.town }}"))
    one, other = guest("Ulm"), guest("Bonn")
    work()
    write(one, "a")
    write(other, "b")
    held_by_a_dead_worker(clock, AgentRun.objects.order_by("pk")[0])
    work()
    assert effects() == ["limited b", "free b"]


def test_an_execution_in_the_backoff_of_a_retry_holds_no_slot(clock, work):
    companion(concurrency=Concurrency(1))
    one, other = guest(), guest()
    work()
    write(one, "fail")
    write(other, "b")
    work()
    assert executions() == ["pending", "completed"]
    assert slots() == {}
    clock.tick(MINUTE)
    work()
    assert (executions(), slots()) == (["failed", "completed"], {})


def test_a_throttle_delays_executions():
    companion(throttle=Throttle(1, per=MINUTE))
    with time_machine("2031-01-07T12:00+00:00") as machine:
        person = guest()
        machine.process()
        now = machine.now
        write(person, "a", "b", "c")
        machine.advance(hours=1)
        began = HandlerExecution.objects.filter(handler="limited").order_by("pk").values_list("started_at", flat=True)
        assert [each - now for each in began] == [timedelta(0), MINUTE, 2 * MINUTE]
    assert slots() == {}


def test_a_rate_limit_skips_executions_and_says_so(clock, work):
    companion(rate_limit=RateLimit(1, per=HOUR))
    person = guest()
    work()
    write(person, "a", "b")
    work()
    assert (executions(), executions("free")) == (["completed", "skipped"], ["completed", "completed"])
    skipped = HandlerExecution.objects.get(status="skipped")
    assert skipped.error.startswith("Skipped: rate_limit=RateLimit(limit=1, ")


def test_an_agent_that_ends_gives_back_what_its_executions_hold(clock, work):
    companion(concurrency=Concurrency(1))
    one, other, third = guest(), guest(), guest()
    work()
    write(one, "a")
    write(other, "b")
    write(third, "c")
    first, second, _ = AgentRun.objects.order_by("pk")
    held_by_a_dead_worker(clock, first)
    work()
    assert (executions(), slots()) == (["pending", "waiting", "waiting"], {"held": 1, "queued": 2})
    AgentManager.cancel(second)
    AgentManager.cancel(first)
    work()
    assert effects() == ["free b", "free c"], "the lease of the dead worker has not ended yet"
    clock.tick(conf().LEASE + SECOND)
    work()
    assert effects() == ["free b", "free c", "limited c"]
    assert (executions(), slots()) == (["cancelled", "cancelled", "completed"], {})
