"""What staff does to an event with a form: move a pending one to another date."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django import forms
from django.utils import timezone
from django.utils.text import format_lazy
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..events.models import Event, EventStatus
from ..exceptions import StateError
from .story import moment_text
from .verb_pages import VerbPage, offer

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

DATE, TIME = "%Y-%m-%d", "%H:%M:%S"


class MoveForm(forms.Form):
    """The new date and time, in the time zone that the label names."""

    at = forms.SplitDateTimeField(
        input_date_formats=[DATE],
        input_time_formats=[TIME, "%H:%M"],
        widget=forms.SplitDateTimeWidget(
            date_format=DATE,
            time_format=TIME,
            date_attrs={"type": "date"},
            time_attrs={"type": "time", "step": "1"},
        ),
    )

    def __init__(self, event: Event, given: Any = None) -> None:
        super().__init__(given, initial={"at": event.at})
        widget: Any = self.fields["at"].widget
        for each, name in zip(widget.widgets, (gettext("Date"), gettext("Time")), strict=True):
            each.attrs["aria-label"] = name
        self.fields["at"].label = gettext("New date and time in %s") % timezone.get_current_timezone_name()


def _move(event: Event, asked: dict[str, Any]) -> StrOrPromise:
    at: datetime = asked["at"]
    if not event.move(at):
        raise StateError(gettext("%s has this date already.") % event, event)
    return format_lazy(_("Moved to {date}."), date=moment_text(at))


def _effects(event: Event) -> Sequence[StrOrPromise]:
    return [
        gettext("Its date is %s.") % moment_text(event.at) if event.at else gettext("It has no date."),
        _(
            "Its offsets and the runs that are planned for it move along; an offset that has fired and is ahead again "
            "fires again."
        ),
        _("With a date in the past it occurs at once."),
    ]


MOVE = VerbPage(
    name="move",
    label=_("Move to another date"),
    button=_("Move"),
    permissions=("move",),
    make_form=MoveForm,
    perform=_move,
    effects=_effects,
    makes_sense=lambda event: event.is_free and event.status == EventStatus.PENDING,
)


def register() -> None:
    """Offer the page for events."""
    offer(Event, MOVE)
