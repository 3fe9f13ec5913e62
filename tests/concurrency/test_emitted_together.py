"""Events that are emitted by many threads at once, beside workers: one for each key, and each heard once."""

from __future__ import annotations

from functools import partial

import pytest
from django.db import transaction
from pydantic import BaseModel

from django_ai.automation import FreeEvent, agent, complete, emit, engine, handler, step, wait_for_event, workflow
from django_ai.automation.agents.models import AgentRun
from django_ai.automation.events.models import Event
from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.free_events import PAID, hear, paid
from tests.support.race import Behind, row_locks, together, together_with_workers
from tests.support.rows import effects, leave

pytestmark = pytest.mark.django_db(transaction=True)


def test_of_many_who_emit_one_key_one_records_it():
    hear(paid())
    found = []

    def work(number: int) -> None:
        with transaction.atomic():
            found.append(emit(PAID, {"n": number}, key="a").pk)

    assert together_with_workers(*[partial(work, number) for number in range(8)]) == []
    event = Event.objects.get()
    assert set(found) == {event.pk}
    assert effects() == [f"heard {event.payload}"]


@row_locks
def test_a_second_one_waits_for_the_first_and_gets_its_event():
    paid()
    with transaction.atomic():
        first = emit(PAID, {"n": 1}, key="a")
        second = Behind(lambda: emit(PAID, {"n": 2}, key="a"))
    assert second.join() == first
    assert Event.objects.get().payload == {"n": 1}


@row_locks
def test_a_second_one_records_it_if_the_first_is_rolled_back():
    paid()
    with pytest.raises(RuntimeError), transaction.atomic():
        emit(PAID, {"n": 1}, key="a")
        second = Behind(lambda: emit(PAID, {"n": 2}, key="a"))
        raise RuntimeError
    assert second.join().payload == {"n": 2}
    assert Event.objects.get().payload == {"n": 2}


@row_locks
def test_one_who_emits_while_it_is_cancelled_records_it_anew(clock):
    paid()
    first = emit(PAID, {"n": 1}, key="a", at=clock.now.replace(year=2031))
    with transaction.atomic():
        first.cancel()
        second = Behind(lambda: emit(PAID, {"n": 2}, key="a"))
    assert second.join() != first
    assert dict(Event.objects.values_list("status", "active_key")).keys() == {"cancelled", "processed"}


@pytest.mark.slow
def test_no_wait_misses_what_is_emitted_beside_it():
    paid()

    @workflow("listens")
    class Listens:
        class Context(BaseModel):
            number: int

        @step(start=True)
        def listen(self):
            return wait_for_event(PAID, match={"order_id": "{{ ctx.number }}"}, then=self.end)

        @step()
        def end(self):
            leave(self.context.number)
            return complete()

    numbers = range(20)
    for number in numbers:
        engine.start("listens", number=number)
    assert together_with_workers(*[partial(emit, PAID, {"order_id": number}) for number in numbers]) == []
    drain()
    assert not WorkflowRun.objects.unfinished().exists()
    assert sorted(map(int, effects())) == list(numbers)


@pytest.mark.slow
def test_no_agent_misses_what_is_emitted_beside_it():
    paid()
    FreeEvent("ordered")

    @agent("keeper", spawn_on="ordered", match={"order_id": "{{ ctx.order_id }}"}, singleton=True)
    class Keeper:
        class Context(BaseModel):
            order_id: int

        @handler(PAID)
        def paid(self, ctx, event):
            leave(f"{ctx.order_id} {event.payload['n']}")

    def order(number: int) -> None:
        emit("ordered", {"order_id": number})
        emit(PAID, {"order_id": number, "n": 1})
        emit(PAID, {"order_id": number, "n": 2})

    numbers = range(10)
    assert together_with_workers(*[partial(order, number) for number in numbers]) == []
    for _ in range(3):
        drain()
    assert AgentRun.objects.count() == len(numbers)
    assert sorted(effects()) == sorted(f"{number} {n}" for number in numbers for n in (1, 2))


@pytest.mark.slow
def test_two_transactions_with_keys_in_another_order():
    """They may deadlock; then one of them is rolled back as a whole, and repeats."""
    paid()

    def work(keys: str) -> None:
        for _ in range(20):
            try:
                with transaction.atomic():
                    for key in keys:
                        emit(PAID, {"keys": keys}, key=key)
                return
            except Exception as error:
                if "deadlock" not in str(error).lower():
                    raise

    assert together(*[partial(work, keys) for keys in ("abcdef", "fedcba") * 3]) == []
    assert Event.objects.count() == 6
    assert len({event.payload["keys"] for event in Event.objects.all()}) == 1
