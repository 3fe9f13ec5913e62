"""Subscribers to the captured events of crates: a callback for each, and for what a deletion cancels.

Each call writes an effect: ``key`` is the milestone, ``serial`` the event's key, and ``idempotency`` what has changed.
"""

from __future__ import annotations

from datetime import timedelta

from django_ai.automation import on_event, on_event_cancelled

from ..models import Effect
from .things import RETRY, ToldToFail

LATER = timedelta(milliseconds=600)


def call(key: str, event_name: str, decorator=on_event, **options):
    def called(event):
        # The key is the name. A crate that was deleted a moment ago may have no snapshot yet.
        was, becomes = event.changes.get("version", ("", ""))
        Effect.objects.create(
            owner=f"{event.entity_id}:crate", key=key, serial=event.pk, idempotency=f"{was} to {becomes}"
        )
        if event.executions.get(callback=f"crate:{key}").attempt < event.pk % 3:
            raise ToldToFail

    decorator(event_name, name=f"crate:{key}", retry=RETRY, **options)(called)


for each in ("crate_made", "crate_written", "crate_touched", "crate_closed", "crate_due", "crate_gone"):
    call(each, each)
call("crate_due+", "crate_due", offset=LATER)
for each in ("crate_made", "crate_written", "crate_touched", "crate_closed", "crate_due"):
    call(f"{each} cancelled", each, on_event_cancelled)
