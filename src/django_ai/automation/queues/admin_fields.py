"""Columns of the admin: times to the second with their zone, and indented JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html
from django.utils.timesince import timesince, timeuntil
from django.utils.translation import gettext_lazy

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

Column = Callable[[Any], Any]


def until_text(moment: datetime, now: datetime) -> str:
    """Return how long it is until ``moment``, in seconds where Django would say "0 minutes"."""
    return str(timeuntil(moment, now)) if moment - now >= timedelta(minutes=1) else _seconds(moment - now)


def since_text(moment: datetime, now: datetime) -> str:
    """Return how long ago ``moment`` was, in seconds where Django would say "0 minutes"."""
    return str(timesince(moment, now)) if now - moment >= timedelta(minutes=1) else _seconds(now - moment)


def _seconds(length: timedelta) -> str:
    return f"{max(int(length.total_seconds()), 0)} s"


def as_message(text: str, row: Any) -> str:
    """Return a message about ``row``. Django capitalises the first letter of a message, so a name there is quoted."""
    name = str(row)
    return text.replace(name, f"“{name}”", 1) if text.startswith(name) else text


def label_of(name: str) -> StrOrPromise:
    """Return the label of a field, whose model has marked it for translation."""
    label = name.replace("_", " ")
    return gettext_lazy(label)


@lru_cache(maxsize=256)
def time_field(name: str) -> Column:
    """Return a column that shows the datetime ``name`` of a row to the second, in the current time zone."""

    @admin.display(description=label_of(name), ordering=name, empty_value="-")
    def shown(row: Any) -> str | None:
        moment = getattr(row, name)
        if moment is None:
            return None
        local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
        return f"{local:%Y-%m-%d %H:%M:%S %Z}".strip()

    shown.__name__ = f"{name}_shown"
    return shown


@lru_cache(maxsize=256)
def json_field(name: str, of: str = "") -> Column:
    """Return a column that shows the JSON field ``name`` of a row with indentation.

    Args:
        name: The field. If it is a foreign key, ``of`` is required.
        of: The field of the related row.
    """

    @admin.display(description=label_of(name), empty_value="-")
    def shown(row: Any) -> str | None:
        value = getattr(row, name)
        if value is not None and of:
            value = getattr(value, of)
        if value is None:
            return None
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        return format_html('<pre class="automation-value">{}</pre>', text)

    shown.__name__ = f"{name}_shown"
    return shown
