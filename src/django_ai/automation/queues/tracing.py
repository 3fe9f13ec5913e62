"""The trace context that a row carries from what causes it to the attempt that performs it, for OpenTelemetry.

``trace_context`` of an event, a run and an agent is what ``provide_trace_contexts`` was given returns as the row is
made: the W3C ``traceparent``, and after a space the ``tracestate``. Without a provider it is NULL, and costs nothing.

A row that was planned ahead, or that has waited, starts a trace of its own, which has a link to its cause: its context
begins with ``LINK``. The attempt that starts that trace writes its context to the run, for the steps that follow.

What fails here is logged, and keeps nothing from being saved or performed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

logger = logging.getLogger("django_ai.automation")

LINK = "~"
MAX_LENGTH = 255

_provider: Callable[[], str | None] | None = None
_on_occurrence: Callable[[Any], str | None] | None = None


def provide_trace_contexts(
    provider: Callable[[], str | None] | None, on_occurrence: Callable[[Any], str | None] | None = None
) -> None:
    """Let new rows carry what ``provider`` returns, at most ``MAX_LENGTH`` characters; None: they carry nothing.

    ``on_occurrence`` is called with an event that carries a context and is about to occur; what it returns is the
    context of everything that the event causes.
    """
    global _provider, _on_occurrence
    _provider, _on_occurrence = provider, on_occurrence


def current_trace_context() -> str | None:
    """Return the trace context of what runs now, or None. The default of the columns ``trace_context``."""
    if _provider is None:
        return None
    try:
        return _provider()
    except Exception:
        logger.exception("The trace context of a row could not be read")
        return None


def occurrence_changes(event: Any) -> dict[str, str | None]:
    """Return the change that gives an event that occurs the context of its occurrence; none where nothing is traced."""
    if _on_occurrence is None or event.trace_context is None:
        return {}
    try:
        return {"trace_context": _on_occurrence(event)}
    except Exception:
        logger.exception("The occurrence of %s could not be traced", event)
        return {}


def linked(context: str | None) -> str | None:
    """Return ``context`` as that of a cause long ago: a new trace starts, with a link to it."""
    return context if context is None or context.startswith(LINK) else f"{LINK}{context}"[:MAX_LENGTH]


def trace_context_field() -> models.CharField[str | None, str | None]:
    """Return the column of a row that carries a trace context."""
    return models.CharField(
        _("trace context"), max_length=MAX_LENGTH, null=True, blank=True, default=current_trace_context, editable=False
    )
