"""Filters of the admin pages, which offer declared names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from .lanes import DEFAULT_QUEUE, declared_queues, stored_name

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise


class DeclaredNameFilter(admin.SimpleListFilter):
    """A filter by name that offers the declared names. A ``SELECT DISTINCT`` would read the whole table."""

    field: ClassVar[str]

    @staticmethod
    def names() -> Collection[str]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        chosen = self.value()
        return [(name, name) for name in sorted({*self.names(), *([chosen] if chosen else [])})]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset if self.value() is None else queryset.filter(**self.conditions(self.value()))

    @classmethod
    def conditions(cls, value: Any) -> dict[str, Any]:
        """Return what the filter asks for when ``value`` is chosen."""
        return {cls.field: value}


def declared_name_filter(
    title: StrOrPromise, field: str, names: Callable[[], Collection[str]]
) -> type[DeclaredNameFilter]:
    """Return a filter of ``field`` that offers ``names()``."""
    given = {"title": title, "parameter_name": field, "field": field, "names": staticmethod(names)}
    return type("Declared", (DeclaredNameFilter,), given)


class QueueFilter(admin.SimpleListFilter):
    """A filter by queue. It is hidden where the code declares no queue."""

    title = _("queue")
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = sorted({*declared_queues(), self.value() or DEFAULT_QUEUE})
        return [(name, name) for name in names] if len(names) > 1 else []

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        chosen = self.value()
        return queryset if chosen is None else queryset.filter(**self.conditions(chosen))

    @classmethod
    def conditions(cls, value: Any) -> dict[str, Any]:
        """Return what the filter asks for when ``value`` is chosen."""
        return {"queue": stored_name(value)}
