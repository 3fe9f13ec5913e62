"""What staff does to a run with a form of its own: send it a signal.

The form offers the names that the run waits for, and those that the source of its workflow names. It has an input for
each field of the Context, because the keys of a payload that are fields are merged into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.text import format_lazy
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..exceptions import AutomationError, DefinitionError
from ..state.editing import edited_data
from ..workflows.definitions import registered_workflow
from ..workflows.engine import engine
from ..workflows.inspection import signals_of
from ..workflows.models import WorkflowRun
from ..workflows.receivable import warning_about
from ..workflows.wait_keys import SUBFLOW
from .context_inputs import Input, add_inputs, clean_inputs, clean_other, inputs_of_context
from .verb_pages import VerbPage, offer

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise


class SignalForm(forms.Form):
    """The name of the signal, and its payload: an input for each field of the Context, and other keys as JSON."""

    signal_name = forms.CharField(
        label=_("Signal"),
        max_length=200,
        widget=forms.TextInput(attrs={"list": "automation-names", "autocomplete": "off", "size": 40}),
    )

    def __init__(self, run: WorkflowRun, given: Any = None) -> None:
        self.run, (waited, self.names) = run, names_for(run)
        super().__init__(given, initial={"signal_name": waited[0] if waited else ""})
        if waited:
            self.fields["signal_name"].help_text = gettext("It waits for %s.") % ", ".join(map(repr, waited))
        self.inputs = _inputs_for(run)
        add_inputs(self, self.inputs.values(), is_start=False)
        self.fields["payload"].help_text = gettext("An object in braces. A step reads them with get_wake().")

    def clean_signal_name(self) -> str:
        """Refuse a name that no step of the run can receive, with the nearest one."""
        name = str(self.cleaned_data["signal_name"])
        warning = warning_about(self.run, name)
        if warning:
            raise ValidationError(warning)
        return name

    def clean_payload(self) -> dict[str, Any]:
        return clean_other(self.cleaned_data["payload"])

    def clean(self) -> dict[str, Any]:
        """Put the payload together. A key is given once."""
        values = super().clean() or self.cleaned_data
        fields, other = clean_inputs(self, self.inputs), values.get("payload") or {}
        values["fields"] = {**fields, **{name: value for name, value in other.items() if name in self.inputs}}
        values["whole"] = {**other, **fields}
        return values


def names_for(run: WorkflowRun) -> tuple[list[str], list[str]]:
    """Return the names that the run waits for now, and all that a step of it may receive, those first."""
    waited = [
        wait.channel
        for wait in run.waits.all()
        if wait.visit == run.visit and wait.channel and not wait.channel.startswith(f"{SUBFLOW}:")
    ]
    definition = registered_workflow(run.name, run.version)
    named = sorted(signals_of(definition.cls) or ()) if definition is not None else []
    return waited, list(dict.fromkeys([*waited, *named]))


def _inputs_for(run: WorkflowRun) -> dict[str, Input]:
    """Return the inputs of the fields that a payload is merged into, by their own names."""
    definition = registered_workflow(run.name, run.version)
    return {} if definition is None else inputs_of_context(definition.context, by_alias=False)


def _send(run: WorkflowRun, asked: dict[str, Any]) -> StrOrPromise:
    fields, name = asked["fields"], asked["signal_name"]
    if fields and not run.has_no_context:
        # The run would be parked by a payload that its Context does not accept.
        edited_data(run.find_definition(), run.data, run.version, fields, f"The payload of {name!r}")
    signal = engine.signal(name, asked["whole"], run=run)
    if signal.warning:
        raise DefinitionError(signal.warning)
    return format_lazy(_("Sent the signal {name}."), name=repr(name))


def _effects(run: WorkflowRun) -> Sequence[StrOrPromise]:
    waited, _names = names_for(run)
    if waited:
        first = gettext("A signal that it waits for wakes the run at once; another one is kept until it waits for it.")
    else:
        first = gettext("It waits for no signal now: the signal is kept until a step waits for it.")
    return [
        first,
        _("The fields that you fill in are merged into the Context, after its Pydantic model has accepted them."),
        _("No other run receives it."),
    ]


def _can_receive(run: WorkflowRun) -> bool:
    if run.is_finished:
        return False
    try:
        run.find_definition()
    except AutomationError:
        return False
    waited, names = names_for(run)
    definition = registered_workflow(run.name, run.version)
    # A step may compute the name, and then any name may be right.
    return bool(waited or names) or definition is None or signals_of(definition.cls) is None


SIGNAL = VerbPage(
    name="signal",
    label=_("Send a signal"),
    button=_("Send"),
    permissions=("signal",),
    make_form=SignalForm,
    perform=_send,
    effects=_effects,
    makes_sense=_can_receive,
)


def register() -> None:
    """Offer the page for runs."""
    offer(WorkflowRun, SIGNAL)
