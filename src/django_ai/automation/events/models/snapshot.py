"""``Snapshot``: the stored values of a deleted entity."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from ...db.writer import AutomationModel
from ..snapshots import restore_snapshot


class Snapshot(AutomationModel):
    """The column values of a deleted entity, or those that its definitions keep (``snapshot_fields=``). All events of
    the entity share one snapshot."""

    taken_at = models.DateTimeField(editable=False)
    data = models.JSONField(editable=False)

    class Meta:
        verbose_name = _("snapshot")
        verbose_name_plural = _("snapshots")
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.data['model']} {self.data['pk']}, deleted at {self.taken_at.isoformat()}"

    def restore(self) -> models.Model | None:
        """Return an unsaved instance with the stored values."""
        return restore_snapshot(self.data)
