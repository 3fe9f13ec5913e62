"""``CollectedEvent``: an event that waits in a window (``Debounce``, ``Batch``), or was handed to a run or call."""

from __future__ import annotations

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ...db.indexes import PartialIndex, unique
from ...db.writer import AutomationModel
from ...values.digests import KEY_LENGTH
from .event import Event


class CollectedEvent(AutomationModel):
    """One event for one workflow or callback that handles several together.

    It is inserted in the transaction in which the event occurs. ``window`` is the key that it shares with the others of
    its window, and with the row that handles them. ``target`` is the primary key of that row once the window is closed.
    """

    kind = models.CharField(_("kind"), max_length=20, editable=False)
    name = models.CharField(_("name"), max_length=250, editable=False)
    window = models.CharField(_("window"), max_length=KEY_LENGTH, editable=False)
    event = models.ForeignKey(
        Event, verbose_name=_("event"), on_delete=models.CASCADE, related_name="+", editable=False
    )
    position = models.BigIntegerField(_("position"), default=0, editable=False)
    target = models.BigIntegerField(_("target"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("created at"), default=timezone.now, editable=False)
    unique_key = models.CharField(_("unique key"), max_length=KEY_LENGTH, editable=False)

    class Meta:
        verbose_name = _("collected event")
        verbose_name_plural = _("collected events")
        constraints = [unique("automation_collected_unique", "unique_key")]
        indexes = [
            PartialIndex(
                fields=["window", "position"],
                name="automation_collected_window",
                condition=models.Q(target__isnull=True),
            ),
            PartialIndex(
                fields=["target", "kind"],
                name="automation_collected_target",
                condition=models.Q(target__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event_id} for {self.name}"
