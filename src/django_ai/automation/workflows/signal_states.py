"""Whether a signal was read: its state in one word, and the condition of the rows that are in it."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .models import Signal, WorkflowRun


class SignalState(models.TextChoices):
    SENT = "sent", _("On its way")
    PARKED = "parked", _("Parked")
    DELIVERED = "delivered", _("Delivered")  # to all runs that waited for it then
    READ = "read", _("Read")
    UNREAD = "unread", _("Unread")  # in the inbox of a run
    NEVER = "never", _("Never read")  # its run has ended


def state_of(signal: Signal) -> SignalState:
    """Return the state of ``signal``. Reads its run."""
    if signal.delivered_at is None:
        return SignalState.SENT if signal.parked_at is None else SignalState.PARKED
    if signal.run is None:
        return SignalState.DELIVERED
    if signal.consumed_at is not None:
        return SignalState.READ
    return SignalState.NEVER if signal.run.is_finished else SignalState.UNREAD


def signals_in(state: SignalState) -> models.Q:
    """Return the condition of the signals in ``state``."""
    inbox = models.Q(delivered_at__isnull=False, consumed_at=None, run__isnull=False)
    living = models.Q(run__in=WorkflowRun.objects.unfinished())
    return {
        SignalState.SENT: models.Q(delivered_at=None, parked_at=None),
        SignalState.PARKED: models.Q(delivered_at=None, parked_at__isnull=False),
        SignalState.DELIVERED: models.Q(delivered_at__isnull=False, run=None),
        SignalState.READ: models.Q(consumed_at__isnull=False),
        SignalState.UNREAD: inbox & living,
        SignalState.NEVER: inbox & ~living,
    }[state]
