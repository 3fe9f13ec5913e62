"""The console has no tables. ``Overview`` gives its page a place in the index of the admin, and a permission."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from ..queues.models import Worker


class Overview(Worker):
    """The page of the overview. A proxy, which is never read or written."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("overview")
        verbose_name_plural = _("overview")
