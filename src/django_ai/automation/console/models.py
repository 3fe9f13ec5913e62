"""The console has no tables. Proxies give its pages a place in the index of the admin, and a permission."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from ..queues.models import Limiter, Worker


class Catalogue(Worker):
    """The page of everything that the code declares. A proxy, which is never read or written."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("catalogue")
        verbose_name_plural = _("catalogue")


class Overview(Worker):
    """The page of the overview. A proxy, which is never read or written."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("overview")
        verbose_name_plural = _("overview")


class Queues(Limiter):
    """The page of queues and limits. A proxy, which is never read or written."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("queues and limits")
        verbose_name_plural = _("queues and limits")


class Agenda(Worker):
    """The page of the agenda. A proxy, which is never read or written."""

    class Meta:
        proxy = True
        default_permissions = ("view",)
        verbose_name = _("agenda")
        verbose_name_plural = _("agenda")
