"""The page that repairs a run: edit its Context, resume it at a step, or fork it. It calls the verbs of the engine."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..db.writer import alias_of
from ..exceptions import AutomationError, DefinitionError, InvalidContextError
from ..queues.acting import acting_as
from ..queues.admin_stories import StoryPage
from ..workflows.engine import engine
from ..workflows.models import WorkflowRun
from .context_form import ContextForm, add_field_errors
from .reading import MAX_ENTRIES
from .story import moment_text

TEMPLATE = "automation_console/repair.html"


class RepairForm(ContextForm):
    """The Context as JSON, the step to continue at, and why."""

    step = forms.ChoiceField(label=_("Step"), required=False)
    visit = forms.ChoiceField(label=_("Rewind to"), required=False)
    reason = forms.CharField(label=_("Reason"), required=False, max_length=200)

    def __init__(self, run: WorkflowRun, given: Any = None) -> None:
        super().__init__(run, given)
        field: Any = self.fields["step"]
        here = gettext("where it is, or at the start of a fork")
        field.choices = [("", here), *((name, name) for name in _steps(run))]
        visits: Any = self.fields["visit"]
        visits.choices = [("", gettext("no earlier visit")), *_visits(run)]


def _steps(run: WorkflowRun) -> list[str]:
    try:
        return list(run.find_definition().steps)
    except AutomationError:  # the code is gone: the Context can still be read
        return []


def _visits(run: WorkflowRun) -> list[tuple[str, str]]:
    """Return the newest visits whose Context the history has kept, with their steps and times."""
    kept = run.steps.filter(before__isnull=False).order_by("-pk")[:MAX_ENTRIES]
    found = [(each.visit, each.step, each.started) for each in kept.defer("before", "error")]
    return [(str(visit), f"{visit}: {step}, {moment_text(at) if at else ''}") for visit, step, at in found]


def repair_run(owner: StoryPage, request: HttpRequest, run: WorkflowRun) -> HttpResponse:
    """Show the form, and do what it asks for, in one transaction."""
    if not (owner.has_action_permission("edit", request) and owner.has_action_permission("view_data", request)):
        raise PermissionDenied
    may_resume = owner.has_action_permission("resume", request)
    if request.method != "POST":
        return _page(owner, request, run, RepairForm(run), may_resume=may_resume)
    verb = next((name for name in ("save", "resume", "fork", "rewind") if name in request.POST), "")
    if not verb or (verb in ("resume", "rewind") and not may_resume):
        raise PermissionDenied
    form = RepairForm(run, request.POST)
    if form.is_valid():
        try:
            return HttpResponseRedirect(owner.address_of(_perform(request, run, verb, form.cleaned_data)))
        except InvalidContextError as error:
            add_field_errors(form, error)
        except AutomationError as error:
            form.add_error(None, str(error))
    return _page(owner, request, run, form, may_resume=may_resume)


def _perform(request: HttpRequest, run: WorkflowRun, verb: str, asked: dict[str, Any]) -> WorkflowRun:
    """Call the verbs, and return the run whose page is shown next."""
    fields, step, reason = asked["context"], asked["step"] or None, asked["reason"]
    with transaction.atomic(using=alias_of(WorkflowRun)), acting_as(request.user, reason):
        if verb == "fork":
            made = engine.fork(run, step, fields, reason=reason)
            _log(request, run, f"Forked as {made}.", reason)
            _log(request, made, f"Forked from {run}.", reason)
            messages.success(request, gettext("Started %s.") % made)
            return made
        if verb == "rewind":
            if not asked["visit"]:
                raise DefinitionError(gettext("Choose the visit to which the run is rewound."))
            engine.rewind(run, int(asked["visit"]), reason=reason)
            _log(request, run, f"Rewound to visit {asked['visit']}.", reason)
            messages.success(request, gettext("The run was rewound."))
            return run
        if fields:
            engine.edit_context(run, fields, reason=reason)
            _log(request, run, f"Edited its Context: {', '.join(sorted(fields))}.", reason)
            messages.success(request, gettext("The Context was saved."))
        if verb == "resume":
            engine.resume(run, step)
            _log(request, run, f"Resumed at {step}." if step else "Resumed.", reason)
            messages.success(request, gettext("The run was resumed."))
        elif not fields:
            messages.info(request, gettext("Nothing was changed."))
    return run


def _log(request: HttpRequest, run: WorkflowRun, text: str, reason: str) -> None:
    LogEntry.objects.log_actions(request.user.pk or 0, [run], CHANGE, f"{text} {reason}".strip())


def _page(
    owner: StoryPage, request: HttpRequest, run: WorkflowRun, form: RepairForm, *, may_resume: bool
) -> HttpResponse:
    context = {
        **owner.admin_site.each_context(request),
        "opts": owner.opts,
        "original": run,
        "title": gettext("Repair %s") % run,
        "form": form,
        "run_url": owner.address_of(run),
        "may_resume": may_resume and run.status in ("failed", "parked"),
        "may_rewind": may_resume,
        "words": {
            "save": gettext("Save the Context"),
            "resume": gettext("Save and resume"),
            "fork": gettext("Start a fork"),
            "rewind": gettext("Rewind"),
            "help": gettext(
                "The Pydantic model of the workflow validates the values. A fork is a new run with this Context; the "
                "old run stays as it is."
            ),
        },
    }
    return TemplateResponse(request, TEMPLATE, context, status=200 if not form.errors else 422)
