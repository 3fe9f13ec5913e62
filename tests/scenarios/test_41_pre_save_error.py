"""Scenario 41: a ``pre_save`` receiver raises, and the view catches the error.

No statement of the save was sent, so the outer transaction continues.
"""

from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models.signals import post_save, pre_save

from django_ai.automation.events.models import Event
from tests.apps.reservations.models import Effect, Suite, Ticket

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def receive(request):
    connected = []

    def connect(signal, receiver, sender):
        signal.connect(receiver, sender=sender, weak=False)
        connected.append((signal, receiver, sender))

    yield connect
    for signal, receiver, sender in connected:
        signal.disconnect(receiver, sender=sender)


def refuse(instance, **kwargs):
    Effect.objects.create(name="looked at")  # the receiver's own write is not part of the save
    raise ValidationError("no title")


@pytest.mark.parametrize("model", [Ticket, Suite])
def test_41_the_outer_transaction_goes_on(receive, model):
    receive(pre_save, refuse, model)
    with transaction.atomic():
        Effect.objects.create(name="before")
        with pytest.raises(ValidationError, match="no title"):
            model(pk=None if model is Suite else Ticket().pk).save()
        Effect.objects.create(name="after")
    assert {each.name for each in Effect.objects.all()} == {"before", "looked at", "after"}
    assert not model.objects.exists()
    assert not Event.objects.exists()


def test_41_the_same_for_a_row_that_is_there(receive):
    ticket = Ticket.objects.create()
    receive(pre_save, refuse, Ticket)
    with transaction.atomic():
        ticket.open = False
        with pytest.raises(ValidationError):
            ticket.save()
        Effect.objects.create(name="after")
    assert Effect.objects.filter(name="after").exists()
    assert Ticket.objects.get().open


def test_41_what_was_sent_goes_with_its_events(receive):
    def refuse_late(**kwargs):
        raise ValidationError("too late")

    receive(post_save, refuse_late, Ticket)
    with transaction.atomic():
        with pytest.raises(ValidationError):
            Ticket.objects.create(open=False)
        with pytest.raises(transaction.TransactionManagementError):
            Effect.objects.exists()
        transaction.set_rollback(True)
    assert not Ticket.objects.exists()
    assert not Event.objects.exists()


def test_41_post_save_receivers_run_before_the_commit(receive):
    inside = []
    receive(post_save, lambda **kwargs: inside.append(transaction.get_connection().in_atomic_block), Ticket)
    Ticket.objects.create()
    assert inside == [True]
