"""The page that starts a workflow by hand: ``engine.start`` with a form made of the fields of its Context.

It is reached from the list of runs, which lets the user choose a workflow, and from the page of a workflow in the
catalogue.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.models import ADDITION, LogEntry
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import Error as DatabaseError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext, override
from django.utils.translation import gettext_lazy as _
from pydantic import ValidationError as PydanticError

from ..db.deadlocks import retry_on_deadlock
from ..db.writer import alias_of
from ..exceptions import AutomationError, RunExistsError, UnknownWorkflowError
from ..queues.acting import acting_as
from ..queues.admin_stories import StoryPage, register_list_view
from ..queues.lanes import shown_name
from ..queues.models import Pause
from ..queues.pauses import EVERYTHING, target_of_name, target_of_queue
from ..values.digests import KEY_LENGTH, digest, new_call_key
from ..workflows.definitions import WorkflowDefinition, find_workflow, newest_workflows
from ..workflows.engine import engine
from ..workflows.keyed_start import MAX_KEY_LENGTH
from ..workflows.models import WorkflowRun
from .catalogue.origins import first_paragraph
from .context_inputs import (
    Input,
    add_inputs,
    add_pydantic_errors,
    clean_inputs,
    clean_other,
    inputs_of_context,
    inputs_of_function,
)
from .start_link import PAGE, start_url
from .story import duration_text
from .verb_pages import MAX_REASON

logger = logging.getLogger(__name__)

KEPT = ("key", "if_exists")
"""Names that ``engine.start`` keeps for itself."""
ONCE = "once"
"""The hidden input that is another one in each form: one that is sent twice starts one run."""


class StartForm(forms.Form):
    """The arguments of a start: an input for each, other ones as JSON, the key, and why."""

    def __init__(self, definition: WorkflowDefinition, given: Any = None) -> None:
        super().__init__(given)
        self.inputs = _inputs_of(definition)
        add_inputs(self, self.inputs.values(), is_start=True)
        self.fields["payload"].help_text = gettext("An object in braces; also for fields that shall be empty strings.")
        self.fields["key"] = forms.CharField(
            label=_("Key"),
            required=False,
            strip=False,
            max_length=MAX_KEY_LENGTH,
            help_text=_(
                "What the run is unique for, such as order:12. If there is a run with this key, none is started."
            ),
        )
        self.fields[ONCE] = forms.CharField(
            required=False, max_length=KEY_LENGTH, initial=new_call_key, widget=forms.HiddenInput
        )
        self.fields["reason"] = forms.CharField(
            label=_("Reason"), max_length=MAX_REASON, widget=forms.Textarea(attrs={"rows": 2, "cols": 60})
        )

    def clean_payload(self) -> dict[str, Any]:
        found = clean_other(self.cleaned_data["payload"])
        kept = [name for name in KEPT if name in found]
        if kept:
            raise ValidationError(gettext("No field of a Context can be called %s.") % ", ".join(kept))
        return found

    def clean(self) -> dict[str, Any]:
        """Put the arguments together. A key is given once."""
        values = super().clean() or self.cleaned_data
        values["arguments"] = {**(values.get("payload") or {}), **clean_inputs(self, self.inputs)}
        return values

    @property
    def own_key(self) -> str | None:
        """A key for this form with these values, for a start without a key. The same form with other values, as after
        *Back*, is another start."""
        once = self.cleaned_data.get(ONCE)
        if not once:
            return None
        return f"form:{digest(once, json.dumps(self.cleaned_data['arguments'], sort_keys=True, default=str))}"


def start_page(owner: StoryPage, request: HttpRequest) -> HttpResponse:
    """Let the user choose a workflow, show its form, or start it."""
    if not start_url(owner.admin_site, request):
        raise PermissionDenied
    if request.method not in ("GET", "HEAD", "POST"):
        return HttpResponseNotAllowed(["GET", "HEAD", "POST"])
    name = request.GET.get("workflow", "")
    if not name:
        return _choice(owner, request)
    try:
        definition = find_workflow(name)
    except UnknownWorkflowError as error:
        return _choice(owner, request, str(error))
    form = StartForm(definition, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        run = _start(request, definition, form)
        if run is not None:
            return HttpResponseRedirect(owner.address_of(run))
    return _page(owner, request, definition, form)


def _start(request: HttpRequest, definition: WorkflowDefinition, form: StartForm) -> WorkflowRun | None:
    """Start the workflow as the user, in one transaction with the log, and tell the user. None: the form says why it
    was not."""
    asked, alias = form.cleaned_data, alias_of(WorkflowRun)
    given = asked["key"] or None
    key = given or form.own_key

    def work() -> WorkflowRun:
        with transaction.atomic(using=alias), acting_as(request.user, asked["reason"]):
            if_exists: Any = "return" if key is None else "raise"
            run = engine.start(definition.name, key=key, if_exists=if_exists, **asked["arguments"])
            with override(None):  # the log is stored, and its readers have other languages
                text = f"Started by hand: {asked['reason']}"
                LogEntry.objects.log_actions(request.user.pk or 0, [run], ADDITION, text, single_object=True)
        return run

    try:
        run = retry_on_deadlock(alias, work)
    except PydanticError as error:
        add_pydantic_errors(form, error)
    except RunExistsError as error:
        if given is None:
            messages.info(request, gettext("This form has started %s before.") % error.run)
            return error.run  # type: ignore[no-any-return]
        form.add_error("key", str(error))
    except AutomationError as error:
        form.add_error(None, str(error))
    except DatabaseError:
        raise
    except Exception as error:  # create_context is the project's code, and raises what it likes
        logger.warning("%s: create_context has refused a start by hand", definition.name, exc_info=True)
        form.add_error(None, f"{type(error).__name__}: {error}")
    else:
        messages.success(request, gettext("Started %s.") % run)
        return run
    return None


def _inputs_of(definition: WorkflowDefinition) -> dict[str, Input]:
    if not definition.has_create_context:
        found = inputs_of_context(definition.context, by_alias=True)
    else:
        found = inputs_of_function(definition.cls.create_context)  # type: ignore[attr-defined]
    return {name: each for name, each in found.items() if name not in KEPT}


def _effects(definition: WorkflowDefinition) -> Iterable[str]:
    words = {"name": definition.name, "version": definition.version, "step": definition.start}
    yield gettext("A new run of “%(name)s”, version %(version)s, begins with the step “%(step)s”.") % words
    if definition.has_create_context:
        yield gettext("Its create_context is called with these values; nothing is started if it refuses them.")
    else:
        yield gettext("The Pydantic model of its Context validates the values; nothing is started if it refuses one.")
    if definition.event_name is not None:
        event = {"event": definition.event_name}
        yield (
            gettext(
                "As a rule “%(event)s” starts it. This run has no event and no entity, and begins at once: its offset, "
                "its condition and its match are not asked."
            )
            % event
        )
    if definition.deadline is not None:
        yield gettext("It fails if it has not ended %s after its start.") % duration_text(definition.deadline)
    if definition.limits:
        yield gettext("Its limits count: it may have to wait for its turn.")
    if _is_paused(definition):
        yield gettext("It is paused: the run is created, and begins when the pause ends.")


def _is_paused(definition: WorkflowDefinition) -> bool:
    queue = target_of_queue(shown_name(definition.queue))
    targets = [target_of_name(WorkflowRun.pause_scope, definition.name), queue, EVERYTHING]
    return Pause.objects.filter(target__in=targets).exists()


def _page(owner: StoryPage, request: HttpRequest, definition: WorkflowDefinition, form: StartForm) -> HttpResponse:
    title = gettext("Start “%s”") % definition.name
    context = {
        **_common(owner, request, title),
        "about": first_paragraph(definition.cls),
        "form": form,
        "button": gettext("Start"),
        "effects": [gettext("What will happen"), *_effects(definition)],
    }
    return TemplateResponse(request, "automation_console/start.html", context, status=422 if form.errors else 200)


def _choice(owner: StoryPage, request: HttpRequest, error: str = "") -> HttpResponse:
    context = {
        **_common(owner, request, gettext("Start a workflow")),
        "names": sorted(each.name for each in newest_workflows()),
        "error": error,
        "words": {
            "workflow": gettext("Workflow"),
            "continue": gettext("Continue"),
            "none": gettext("Nothing is declared."),
        },
    }
    template = "automation_console/start_choice.html"
    return TemplateResponse(request, template, context, status=404 if error else 200)


def _common(owner: StoryPage, request: HttpRequest, title: str) -> dict[str, Any]:
    rows = reverse(f"{owner.admin_site.name}:{PAGE.removesuffix('start')}changelist")
    return {
        **owner.admin_site.each_context(request),
        "opts": owner.opts,
        "title": title,
        "row_url": rows,
        "original": str(owner.opts.verbose_name_plural).capitalize(),
    }


def _link(owner: StoryPage, request: HttpRequest) -> tuple[str, Any] | None:
    """Return the link above the list of runs. A list of one workflow leads to the form of that one."""
    name = request.GET.get("name", "")
    known = name if any(each.name == name for each in newest_workflows()) else ""
    address = start_url(owner.admin_site, request, known)
    return (address, gettext("Start “%s”") % known if known else gettext("Start a workflow")) if address else None


def register() -> None:
    """Offer the page beside the list of runs."""
    register_list_view(WorkflowRun, "start", start_page, _link)
