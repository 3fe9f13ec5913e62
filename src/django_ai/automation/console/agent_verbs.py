"""What staff does to an agent with a form: edit its Context, and deliver one event to it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.text import format_lazy
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..agents.manager import AgentManager
from ..agents.models import AgentRun, HandlerExecution, HandlerStatus
from ..agents.redelivery import REDELIVERED
from ..exceptions import DefinitionError
from ..values.text import last_line
from ..workflows.engine import engine
from .context_form import ContextForm
from .reading import MAX_ENTRIES
from .verb_pages import VerbPage, offer

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

RESUME_EXECUTION = "automation_agents.resume_handlerexecution"


class RedeliveryForm(forms.Form):
    """Which of the executions that were skipped or have failed is handled again."""

    execution = forms.ChoiceField(label=_("Execution"), widget=forms.RadioSelect)

    def __init__(self, run: AgentRun, given: Any = None) -> None:
        super().__init__(given)
        found = run.executions.filter(status__in=REDELIVERED).select_related("event").order_by("-pk")[:MAX_ENTRIES]
        self.executions = {str(each.pk): each for each in found}
        field: Any = self.fields["execution"]
        field.choices = [(pk, _in_words(each)) for pk, each in self.executions.items()]
        if not self.executions:
            field.help_text = gettext("No event was skipped, and no handler has failed.")

    def clean_execution(self) -> HandlerExecution:
        found = self.executions.get(str(self.cleaned_data["execution"]))
        if found is None:  # the choices are the executions
            raise ValidationError(gettext("Choose an execution."))
        return found


def _in_words(each: HandlerExecution) -> str:
    label, reason = HandlerStatus(each.status).label, last_line(each.error)
    return f"{each.handler}, {each.event}: {label}" + (f" ({reason})" if reason else "")


def _edit(run: AgentRun, asked: dict[str, Any]) -> StrOrPromise:
    if not asked["context"]:
        raise DefinitionError(gettext("Nothing was changed."))
    engine.edit_context(run, asked["context"], reason=asked["reason"])
    return format_lazy(_("Edited the Context: {fields}."), fields=", ".join(sorted(asked["context"])))


def _edit_effects(run: AgentRun) -> Sequence[StrOrPromise]:
    return [
        _("The Pydantic model of the agent validates the values; nothing is saved if it refuses one."),
        _("Its routes follow: from now on it receives the events that match the new values."),
        _("Its mailbox stays: the next handler reads the new values."),
    ]


def _redeliver(run: AgentRun, asked: dict[str, Any]) -> StrOrPromise:
    execution = asked["execution"]
    AgentManager.redeliver(execution)
    return format_lazy(_("Redelivered {execution}."), execution=str(execution))


def _redelivery_effects(run: AgentRun) -> Sequence[StrOrPromise]:
    return [
        _("Its condition and the claims are asked again; then the handler handles the event, with all its attempts."),
        _("Its idempotency key stays the same. What has completed cannot be chosen, and is never repeated."),
        format_lazy(_("At most {count} executions are listed, the newest first."), count=MAX_ENTRIES),
    ]


EDIT = VerbPage(
    name="edit",
    label=_("Edit the Context"),
    button=_("Save the Context"),
    permissions=("edit", "view_data"),
    make_form=ContextForm,
    perform=_edit,
    effects=_edit_effects,
    makes_sense=lambda run: not run.is_finished and not run.has_no_context,
)
REDELIVER = VerbPage(
    name="redeliver",
    label=_("Redeliver an event"),
    button=_("Redeliver"),
    permissions=(),
    make_form=RedeliveryForm,
    perform=_redeliver,
    effects=_redelivery_effects,
    makes_sense=lambda run: not run.is_finished,
    needs=RESUME_EXECUTION,
)


def register() -> None:
    """Offer the pages for agents."""
    offer(AgentRun, EDIT)
    offer(AgentRun, REDELIVER)
