"""The column of the workers' list with what each has leased now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from .admin_links import link
from .leased import leased_rows
from .models import Worker
from .wakeable import at_text

MAX_LEASED_IN_LIST = 3


def load_leased(rows: Sequence[Worker]) -> None:
    """Read what the processes of ``rows`` have leased now."""
    leased = leased_rows(timezone.now())
    for row in rows:
        row.__dict__["leased"] = leased.get(str(row), [])


@admin.display(description=_("leased now"), empty_value="-")
def leased_now(row: Any) -> Any:
    """Return how many rows the process has leased, since when and until when, with links to the first ones.
    ``load_leased`` reads them."""
    leased = row.__dict__.get("leased") or []
    if not leased:
        return None
    names = [link(f"{each._meta.app_label}_{each._meta.model_name}", each.pk, str(each)) for each in leased]
    shown = format_html_join(", ", "{}", ((name,) for name in names[:MAX_LEASED_IN_LIST]))
    span = span_text([each.leased_at for each in leased], [each.wake_at for each in leased])
    return format_html("{} {}: {}{}", len(leased), span, shown, ", …" if len(leased) > MAX_LEASED_IN_LIST else "")


def span_text(since: Iterable[datetime | None], until: Iterable[datetime]) -> str:
    """Return since when rows are leased (the oldest claim) and until when (the first lease that ends), in words."""
    known, first_end = [each for each in since if each is not None], at_text(min(until))
    if not known:
        return gettext("until %s") % first_end
    return gettext("since %(since)s, until %(until)s") % {"since": at_text(min(known)), "until": first_end}
