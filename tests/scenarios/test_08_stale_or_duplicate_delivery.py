"""08, stale or duplicate delivery: a second delivery of a doorbell, row, signal or occurrence has no effect."""

from __future__ import annotations

from copy import copy

import pytest
from django.utils import timezone

from django_ai.automation.conf import conf
from django_ai.automation.events import occurrence
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import LeaseLostError
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.lease import release
from django_ai.automation.queues.runtimes.tasks import drain_due, poll_due, process_scheduled
from django_ai.automation.workflows import delivery
from django_ai.automation.workflows.models import Signal, WorkflowRun
from tests.support.rows import effects
from tests.support.wakeable_kinds import KINDS, a_signal

pytestmark = pytest.mark.django_db(transaction=True)

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def perform(row) -> None:
    """Perform the row like ``drain``: a worker that has lost its lease writes nothing."""
    try:
        row.perform(timezone.now)
    except LeaseLostError:
        pass


@each_kind
def test_08_the_doorbell_rings_twice(kind):
    KINDS[kind]()
    for bell in (drain_due, drain_due, process_scheduled, poll_due, drain_due):
        bell()
    assert effects() == ["done"]


@each_kind
def test_08_a_row_is_delivered_twice(kind):
    """A worker performs a stale copy of a row that was already performed: the fence refuses its writes."""
    KINDS[kind]()
    (row,) = claim(kind, timezone.now(), 20)
    stale = copy(row)
    perform(row)
    drain()
    assert effects() == ["done"]
    before = kind.objects.values().filter(pk=row.pk).first()  # a captured write is gone
    perform(stale)
    drain()
    assert effects() == ["done"]
    assert kind.objects.values().filter(pk=row.pk).first() == before
    assert release(stale, timezone.now()) is False


@each_kind
def test_08_a_row_is_delivered_after_its_lease(kind):
    """The lease expires and another worker claims the row: the first worker's writes are refused."""
    KINDS[kind]()
    (late,) = claim(kind, timezone.now(), 20)
    (other,) = claim(kind, timezone.now() + conf().LEASE, 20)
    assert (other.pk, other.losses) == (late.pk, 1)
    perform(late)
    perform(other)
    drain()
    assert effects() == ["done"]


def test_08_a_signal_is_delivered_twice():
    a_signal()
    (signal,) = claim(Signal, timezone.now(), 20)
    twice = copy(signal)
    delivery.deliver(signal, timezone.now)
    with pytest.raises(LeaseLostError):
        delivery.deliver(twice, timezone.now)
    Signal.objects.filter(pk=signal.pk).update(wake_at=timezone.now())  # by mistake
    drain()
    assert effects() == ["done"]
    assert WorkflowRun.objects.get().status == "completed"


def test_08_an_event_is_notified_twice():
    KINDS[next(kind for kind in KINDS if kind.__name__ == "AgentRun")]()
    event = Event.objects.get(event_name="message_received")
    Event.objects.filter(pk=event.pk).update(pending_notifications=[""], wake_at=timezone.now())
    drain()
    drain()
    event.refresh_from_db()
    assert (event.pending_notifications, event.wake_at) == ([], None)
    occurrence.notify_subscribers([occurrence.Notification(event, "")], timezone.now)
    drain()
    assert effects() == ["done"]
