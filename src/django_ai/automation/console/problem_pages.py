"""The page of problems, each with buttons for all of its rows; and the page that mutes one."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.translation import gettext

from ..exceptions import AutomationError
from ..queues.acting import acting_as
from ..queues.bulk import words
from ..queues.bulk.verbs import BulkKind, bulk_kinds
from ..queues.models import MutedProblem
from ..queues.problems import key_of_row, mute
from .bulk_pages import MAX_REASON, Offer, allowed_verbs
from .problems import Problem, all_problems
from .story import moment_text

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite
    from django_stubs_ext import StrOrPromise

MAX_PROBLEMS = 100
"""How many problems the page shows."""
MUTED_PAGE = "automation_queues_mutedproblem_change"
PROBLEMS = "automation_queues_mutedproblem_changelist"


def problems_page(site: AdminSite, request: HttpRequest) -> HttpResponse:
    """Show what has failed or is parked, in groups, and what of that is muted. ``?problem=`` shows one group."""
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(["GET", "HEAD"])
    found, chosen = all_problems(timezone.now()), request.GET.get("problem", "")
    shown = shown_problems(site, request, [each for each in found if not chosen or each.key == chosen])
    known = {each["key"] for each in shown}
    mutes = MutedProblem.objects.exclude(key__in=known).order_by("-pk")
    mutes = mutes.filter(key=chosen) if chosen else mutes
    page = f"{site.name}:automation_queues"
    context = {
        **site.each_context(request),
        "opts": MutedProblem._meta,
        "title": gettext("Problems"),
        "problems": [each for each in shown if not each["muted"]],
        "muted": [each for each in shown if each["muted"]],
        "mutes": [
            (str(each), muted_text(each), reverse(f"{site.name}:{MUTED_PAGE}", args=[each.pk]))
            for each in mutes[:MAX_PROBLEMS]
        ],
        "all_url": reverse(f"{page}_mutedproblem_changelist") if chosen else "",
        "confirm_url": reverse(f"{page}_bulkaction_confirm"),
        "mute_url": reverse(f"{page}_mutedproblem_mute"),
        "words": {
            "no_problems": gettext("No row has this problem any more.")
            if chosen
            else gettext("Nothing is parked, and nothing has failed."),
            "all": gettext("Show all problems"),
            "kind": gettext("Kind"),
            "count": gettext("Rows"),
            "name": gettext("Name"),
            "error": gettext("Error"),
            "first": gettext("First"),
            "last": gettext("Last"),
            "newest": gettext("newest"),
            "command": gettext("Command"),
            "mute": words.MUTE,
            "muted": words.MUTED,
            "unmute": words.UNMUTE,
        },
    }
    return TemplateResponse(request, "automation_console/problems.html", context)


def shown_problems(site: AdminSite, request: HttpRequest, found: Iterable[Problem]) -> list[dict[str, Any]]:
    """Return what the page shows of the problems of rows that the user may view."""
    visible = [problem for problem in found if _may_view(request, problem.model)]
    return [_shown(site, request, problem) for problem in visible[:MAX_PROBLEMS]]


def _may_view(request: HttpRequest, model: type[Any]) -> bool:
    options = model._meta
    return request.user.has_perm(f"{options.app_label}.{get_permission_codename('view', options)}")


def _may_mute(request: HttpRequest) -> bool:
    return request.user.has_perm("automation_queues.add_mutedproblem")


def _shown(site: AdminSite, request: HttpRequest, problem: Problem) -> dict[str, Any]:
    options = problem.model._meta
    page = f"{site.name}:{options.app_label}_{options.model_name}"
    statuses = {"status__exact": problem.state} if any(each.name == "status" for each in options.fields) else {}
    try:
        rows, newest = reverse(f"{page}_changelist"), reverse(f"{page}_change", args=[problem.newest_pk])
    except NoReverseMatch:  # the site of the project leaves the page out
        rows = newest = ""
    return {
        "kind": str(options.verbose_name),
        "name": problem.name,
        "state": problem.state,
        "error": problem.error,
        "count": f"{problem.count}+" if problem.is_capped else str(problem.count),
        "first": "" if problem.first_at is None else moment_text(problem.first_at),
        "last": "" if problem.last_at is None else moment_text(problem.last_at),
        "rows": f"{rows}?{urlencode({**statuses, 'q': problem.name})}" if rows else "",
        "newest": newest,
        "command": problem.command,
        "key": problem.key,
        "muted": muted_text(problem.muted),
        "mute_page": "" if problem.muted is None else reverse(f"{site.name}:{MUTED_PAGE}", args=[problem.muted.pk]),
        **_buttons(site, request, problem),
    }


def _buttons(site: AdminSite, request: HttpRequest, problem: Problem) -> dict[str, Any]:
    """Return the verbs that the user may do to all rows of the problem, and the token that names them."""
    kind = bulk_kinds().get(problem.kind)
    if kind is None:
        return {"verbs": [], "may_mute": False, "token": ""}
    texts = {"resume": words.RESUME_THESE, "cancel": words.CANCEL_THESE}
    verbs = [(name, texts[name]) for name in _verbs(site, request, problem, kind)]
    may_mute = problem.muted is None and _may_mute(request)
    token = Offer(kind, problem.filter | {"newest": problem.newest_pk}).token(request) if verbs or may_mute else ""
    return {"verbs": verbs, "may_mute": may_mute, "token": token}


def _verbs(site: AdminSite, request: HttpRequest, problem: Problem, kind: BulkKind) -> list[str]:
    wanted = ("resume", "cancel") if problem.state == "parked" else ("resume",)
    allowed = allowed_verbs(site, request, kind)
    return [name for name in wanted if name in allowed]


def can_change(site: AdminSite, request: HttpRequest, problem: Problem) -> bool:
    """Return whether the page of problems offers the user a button for this one."""
    kind = bulk_kinds().get(problem.kind)
    return kind is not None and (_may_mute(request) or bool(_verbs(site, request, problem, kind)))


def muted_text(muted: MutedProblem | None) -> str:
    """Return until when a problem is muted, by whom, and why."""
    if muted is None:
        return ""
    until = words.FOR_EVER if muted.until is None else words.UNTIL % moment_text(muted.until)
    found = words.MUTED_BY % {
        "until": until,
        "who": muted.actor_name or words.SOME_CODE,
    }
    return f"{found} {muted.reason}".strip()


def back_to_problems(site: AdminSite) -> HttpResponse:
    return HttpResponseRedirect(reverse(f"{site.name}:{PROBLEMS}"))


# -- muting ------------------------------------------------------------------------------------------------------------


def _durations() -> list[tuple[str, StrOrPromise, timedelta | None]]:
    return [
        ("hour", words.FOR_AN_HOUR, timedelta(hours=1)),
        ("day", words.FOR_A_DAY, timedelta(days=1)),
        ("week", words.FOR_A_WEEK, timedelta(weeks=1)),
        ("ever", words.FOR_EVER, None),
    ]


def mute_problem(site: AdminSite, request: HttpRequest) -> HttpResponse:
    """Ask for how long and why a problem is muted, and mute it. POST only."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    offer = Offer.from_post(request)
    back = back_to_problems(site)
    if offer is None:
        messages.warning(request, words.TOO_OLD)
        return back
    if not (_may_mute(request) and _may_view(request, offer.kind.model)) or "problem" not in offer.stored:
        raise PermissionDenied
    chosen = next((each for each in _durations() if each[0] == request.POST.get("for")), None)
    reason = request.POST.get("reason", "").strip()[:MAX_REASON]
    if chosen is None or not reason:
        error = str(words.OTHERS_ASK) if chosen is not None else ""
        return _mute_form(site, request, offer, error)
    row = offer.kind.model._base_manager.filter(pk=offer.stored["newest"]).first()
    now = timezone.now()
    try:
        if row is None or key_of_row(row) != offer.stored["problem"]["key"]:
            raise AutomationError(str(words.HAS_CHANGED))
        with acting_as(request.user, reason):
            muted = mute(row, until=None if chosen[2] is None else now + chosen[2], reason=reason, now=now)
    except AutomationError as error:
        messages.warning(request, str(error))
        return back
    LogEntry.objects.log_actions(request.user.pk or 0, [muted], ADDITION, f"Muted: {reason}", single_object=True)
    messages.success(request, words.IS_MUTED)
    return back


def _mute_form(site: AdminSite, request: HttpRequest, offer: Offer, error: str) -> HttpResponse:
    problem = offer.stored["problem"]
    context = {
        **site.each_context(request),
        "opts": MutedProblem._meta,
        "title": words.MUTE_A_PROBLEM,
        "problem": problem,
        "kind": str(offer.kind.model._meta.verbose_name),
        "token": offer.token(request),
        "durations": [(name, text) for name, text, _ in _durations()],
        "chosen": request.POST.get("for") or "day",
        "reason": request.POST.get("reason", ""),
        "error": error,
        "back_url": reverse(f"{site.name}:{PROBLEMS}"),
        "words": {
            "how": words.HOW_MUTED,
            "for": words.HOW_LONG,
            "reason": gettext("Reason"),
            "mute": words.MUTE,
            "back": words.BACK,
        },
    }
    return TemplateResponse(request, "automation_console/mute.html", context)
