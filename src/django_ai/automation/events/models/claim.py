"""``EventClaim``: an event and a match that one run keeps to itself."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ...db.indexes import unique
from ...db.writer import AutomationModel
from ...queues.history import note_key, noting
from ...values.digests import KEY_LENGTH
from ..claim_owners import find_owner


class EventClaim(AutomationModel):
    """A claim on an event and a match: while it is active, the runs of other owners skip the event."""

    event_name = models.CharField(_("event name"), max_length=200, editable=False)
    namespace = models.CharField(_("namespace"), max_length=100, blank=True, default="", editable=False)
    match = models.JSONField(_("match"), default=dict, blank=True, editable=False)
    residual = models.JSONField(_("residual"), default=dict, blank=True, editable=False)
    key = models.CharField(_("key"), max_length=KEY_LENGTH, editable=False)
    unique_key = models.CharField(_("unique key"), max_length=KEY_LENGTH, editable=False)
    owner_kind = models.CharField(_("owner kind"), max_length=20, editable=False)
    owner_id = models.BigIntegerField(_("owner id"), editable=False)
    priority = models.IntegerField(_("priority"), default=0, editable=False)
    held_at = models.DateTimeField(_("held at"), default=timezone.now, editable=False)
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True, editable=False)
    events_left = models.PositiveIntegerField(_("events left"), null=True, blank=True, editable=False)
    counted = models.JSONField(_("counted"), default=list, blank=True, editable=False)
    seq = models.PositiveIntegerField(_("seq"), default=0, editable=False)

    shape: str = ""

    class Meta:
        verbose_name = _("claim")
        verbose_name_plural = _("claims")
        permissions = [
            ("view_data_eventclaim", "Can view what claims compare"),
            ("release_eventclaim", "Can release claims"),
        ]
        constraints = [unique("automation_claim_unique", "unique_key")]
        indexes = [
            models.Index(fields=["key"], name="automation_claim_key"),
            models.Index(fields=["owner_kind", "owner_id"], name="automation_claim_owner"),
        ]

    def __str__(self) -> str:
        of = (f" with {self.match}" if self.match else "") + (f" in {self.namespace!r}" if self.namespace else "")
        return f"{self.event_name!r}{of} is claimed by {self.owner_kind} {self.owner or f'#{self.owner_id}'}"

    def release(self) -> bool:
        """End the claim before its time, whichever run holds it; others receive what occurs from then on.

        The row is deleted in the caller's transaction. A claim that another run has taken over is not touched.

        Returns:
            True if the run still held it.

        Example:
            Let others answer the calls of a customer again::

                claims.holder("call_received", match={"customer_id": 7}).release()
        """
        held = EventClaim.objects.filter(pk=self.pk, owner_kind=self.owner_kind, owner_id=self.owner_id)
        with noting(EventClaim):
            gone, _ = held.delete()
            if gone:  # without the match, which not everybody may see
                what = f"{self.event_name!r} claimed by {self.owner_kind} #{self.owner_id}"
                note_key(EventClaim, str(self.pk), what, "Released")
        return gone > 0

    @property
    def owner(self) -> Any:
        """The run that holds the claim, or None if it was deleted. The admin reads those of a whole page at once."""
        if "loaded_owner" in self.__dict__:
            return self.__dict__["loaded_owner"]
        return find_owner(self.owner_kind, self.owner_id)
