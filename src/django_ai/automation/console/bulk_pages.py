"""The pages of bulk actions: what is asked before one is created, and the story of one.

A list in the admin executes an action on a few rows at once. For more rows it asks first: how many rows, which, what is
done to them, and why; then it creates a bulk action (``queues.bulk``). The buttons of a problem do the same. Of what
cannot be undone it asks for two rows already, and then executes the action itself. What is asked for travels in a
signed token, so that no other filter can be confirmed than the one that a page offered to this user.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin import SimpleListFilter
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.admin.utils import prepare_lookup_value
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext, override

from ..exceptions import DefinitionError
from ..queues.acting import acting_as
from ..queues.admin_stories import Reader, StoryPage
from ..queues.bulk import words
from ..queues.bulk.creation import count_rows, create_bulk, is_capped
from ..queues.bulk.filters import MAX_PKS, BulkFilter, in_words
from ..queues.bulk.verbs import BulkKind, BulkVerb, bulk_kinds, kind_of_model
from ..queues.models import BulkAction, BulkStatus
from .reading import deeds_of, deeds_of_people, page, page_of_cause
from .story import Fact, Moment, Story, Tone, duration_text, moment_text

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite
    from django_stubs_ext import StrOrPromise

MAX_DIRECT_ROWS = 20
"""Up to so many selected rows a list executes an action itself, and no worker does."""
MAX_REASON = 1000
SALT = "automation.bulk"
MAX_AGE_SECONDS = 24 * 60 * 60
"""How long a page may be open before its buttons are used."""


class Offer:
    """A bulk action that a page offers to a user: a kind of row and a filter, as a signed token."""

    def __init__(self, kind: BulkKind, stored: Mapping[str, Any]) -> None:
        self.kind = kind
        self.stored = stored

    def token(self, request: HttpRequest) -> str:
        given = {"kind": self.kind.name, "filter": dict(self.stored), "user": str(request.user.pk)}
        return signing.dumps(given, salt=SALT, compress=True)

    @classmethod
    def from_post(cls, request: HttpRequest) -> Offer | None:
        """Return what the request confirms. None: the page is too old. Raises ``PermissionDenied`` for a forged token,
        or one of another user."""
        try:
            given = signing.loads(request.POST.get("token", ""), salt=SALT, max_age=MAX_AGE_SECONDS)
        except signing.SignatureExpired:
            return None
        except signing.BadSignature:
            raise PermissionDenied from None
        kind = bulk_kinds().get(given["kind"])
        if kind is None or given["user"] != str(request.user.pk):
            raise PermissionDenied
        return cls(kind, given["filter"])


def owner_of(site: AdminSite, kind: BulkKind) -> StoryPage | None:
    """Return the admin of the rows of ``kind``, or None if the site of the project leaves it out."""
    found = site._registry.get(kind.model)
    return found if isinstance(found, StoryPage) else None


def allowed_verbs(site: AdminSite, request: HttpRequest, kind: BulkKind) -> dict[str, StrOrPromise]:
    """Return the verbs that the user may do to rows of ``kind``, with their labels."""
    owner = owner_of(site, kind)
    if owner is None or not owner.has_view_permission(request):
        return {}
    return {name: label for name, (_, label) in owner.allowed_actions(request).items() if name in kind.verbs}


# -- from a list -------------------------------------------------------------------------------------------------------


def confirm_many(owner: StoryPage, request: HttpRequest, queryset: Any) -> HttpResponse | None:
    """Answer an action of a list: None if it concerns few rows and can be undone, or one row, or is none for many."""
    kind, verb = kind_of_model(owner.model), _chosen_action(request)
    if kind is None or verb not in kind.verbs or verb not in owner.allowed_actions(request):
        return None
    is_selection = request.POST.get("select_across", "0") == "0"
    if is_selection:
        # The rows that the list shows to this user: the keys are what the request says.
        queryset = queryset.filter(pk__in=[pk for pk in request.POST.getlist(ACTION_CHECKBOX_NAME) if pk.isdecimal()])
    first = list(queryset.values_list("pk", flat=True)[: MAX_DIRECT_ROWS + 1])
    if len(first) <= MAX_DIRECT_ROWS:
        asks = kind.verbs[verb].is_final and len(first) > 1 and BulkAction in owner.admin_site._registry
        if not asks:
            return None
        rows = BulkFilter(pks=first)
    else:
        found = None if is_selection else filter_of(owner, request)
        if found is None:
            pks = list(queryset.order_by().values_list("pk", flat=True)[: MAX_PKS + 1])
            if len(pks) > MAX_PKS:
                text = words.TOO_MANY % MAX_PKS
                owner.message_user(request, text, messages.WARNING)
                return HttpResponseRedirect(request.get_full_path())
            found = BulkFilter(pks=pks)
        rows = found
    return confirmation(owner.admin_site, request, Offer(kind, rows.as_json()), verb)


def _chosen_action(request: HttpRequest) -> str:
    """Return the name of the action, which one of the forms above and below the list has."""
    names, index = request.POST.getlist("action"), request.POST.get("index", "0")
    return names[int(index)] if index.isdecimal() and int(index) < len(names) else ""


def filter_of(owner: StoryPage, request: HttpRequest) -> BulkFilter | None:
    """Return the filter of the list that the user sees. None: it cannot be stored, as with a search."""
    if owner.get_queryset(request).query.where:
        return None  # the project shows each user a part of the rows only
    shown = owner.get_changelist_instance(request)
    if str(shown.query).strip():
        return None
    filters: list[Any] = list(shown.list_filter)
    named = {each.parameter_name: each for each in filters if _is_simple(each)}
    where: dict[str, Any] = {}
    for name, values in shown.get_filters_params().items():
        given = values if isinstance(values, list) else [values]
        if name in named:
            if not hasattr(named[name], "conditions"):
                return None
            where |= named[name].conditions(given[-1])
        elif len(given) == 1:
            where[name] = prepare_lookup_value(name, given[0])
        elif name.endswith("__exact"):
            where[f"{name.removesuffix('__exact')}__in"] = given
        else:
            return None
    return BulkFilter(where)


def _is_simple(list_filter: Any) -> bool:
    return isinstance(list_filter, type) and issubclass(list_filter, SimpleListFilter)


# -- confirming --------------------------------------------------------------------------------------------------------


def confirmation(
    site: AdminSite, request: HttpRequest, offer: Offer, verb_name: str, error: str = ""
) -> TemplateResponse:
    """Return the page that says what will be done, to how many rows, and asks why."""
    verb = offer.kind.verbs[verb_name]
    label = str(allowed_verbs(site, request, offer.kind)[verb_name])
    total = count_rows(offer.kind, verb, offer.stored)
    context = {
        **site.each_context(request),
        "opts": BulkAction._meta,
        "title": label,
        "sentence": sentence_of(total, offer.kind),
        "conditions": in_words(offer.stored) or [str(words.ALL_ROWS)],
        "warning": words.FINAL if verb.is_final else "",
        "token": offer.token(request),
        "verb": verb_name,
        "label": label,
        "reason": request.POST.get("reason", ""),
        "error": error,
        "total": total,
        "start_url": reverse(f"{site.name}:automation_queues_bulkaction_start"),
        "back_url": _list_url(site, offer.kind),
        "words": {
            "conditions": words.CONDITIONS,
            "reason": gettext("Reason"),
            "back": words.BACK,
            "how": "" if _is_direct(offer) else words.HOW,
            "none": words.NOTHING,
        },
    }
    return TemplateResponse(request, "automation_console/bulk_confirm.html", context)


def sentence_of(total: int, kind: BulkKind) -> str:
    """Return how many rows are concerned."""
    rows = kind.model._meta.verbose_name_plural
    if is_capped(total):
        return words.CONCERNED_MANY % {"count": f"{total - 1:,}", "rows": rows}
    return words.CONCERNED % {"count": f"{total:,}", "rows": rows}


def ask(site: AdminSite, request: HttpRequest) -> HttpResponse:
    """Show the confirmation of what a button offers. POST only."""
    found = _offered(site, request)
    return found if isinstance(found, HttpResponse) else confirmation(site, request, *found)


def start(site: AdminSite, request: HttpRequest) -> HttpResponse:
    """Create the bulk action that the form confirms, or do it to few rows at once. POST only."""
    found = _offered(site, request)
    if isinstance(found, HttpResponse):
        return found
    offer, verb = found
    reason = request.POST.get("reason", "").strip()[:MAX_REASON]
    if not reason:
        return confirmation(site, request, offer, verb, str(words.SAY_WHY))
    if _is_direct(offer):
        return _do_at_once(site, request, offer, verb)
    try:
        with acting_as(request.user, reason):
            bulk = create_bulk(verb, offer.kind.name, BulkFilter.from_json(offer.stored), reason)
    except DefinitionError as error:
        return confirmation(site, request, offer, verb, str(error))
    with override(None):
        log = f"{verb}: {reason}"
    LogEntry.objects.log_actions(request.user.pk or 0, [bulk], ADDITION, log, single_object=True)
    messages.success(request, words.STARTED)
    return HttpResponseRedirect(reverse(f"{site.name}:automation_queues_bulkaction_change", args=[bulk.pk]))


def _is_direct(offer: Offer) -> bool:
    """Return whether the rows are so few that the request changes them."""
    return 0 < len(offer.stored.get("pks", ())) <= MAX_DIRECT_ROWS


def _do_at_once(site: AdminSite, request: HttpRequest, offer: Offer, verb: str) -> HttpResponse:
    """Execute the action of the list on the rows that the form confirms, which the user may have lost meanwhile."""
    owner = owner_of(site, offer.kind)
    assert owner is not None
    action = owner.allowed_actions(request)[verb][0]
    answer: HttpResponse | None = action(owner, request, owner.get_queryset(request).filter(pk__in=offer.stored["pks"]))
    return answer or HttpResponseRedirect(_list_url(site, offer.kind))


def _list_url(site: AdminSite, kind: BulkKind) -> str:
    options = kind.model._meta
    return reverse(f"{site.name}:{options.app_label}_{options.model_name}_changelist")


def _offered(site: AdminSite, request: HttpRequest) -> tuple[Offer, str] | HttpResponse:
    """Return what the request asks for, if the user may do it. Raises ``PermissionDenied``."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    offer = Offer.from_post(request)
    if offer is None:
        messages.warning(request, words.TOO_OLD)
        return HttpResponseRedirect(reverse(f"{site.name}:automation_queues_bulkaction_changelist"))
    verb = request.POST.get("verb", "")
    if verb not in allowed_verbs(site, request, offer.kind):
        raise PermissionDenied
    return offer, verb


# -- the story of a bulk action ----------------------------------------------------------------------------------------

TONES = {
    BulkStatus.COMPLETED: Tone.GOOD,
    BulkStatus.CANCELLED: Tone.STOPPED,
    BulkStatus.PARKED: Tone.BAD,
    BulkStatus.RUNNING: Tone.WORKING,
    BulkStatus.PENDING: Tone.WAITING,
}


def title_of(row: BulkAction) -> str:
    """Return what is done to which kind of rows."""
    kind = bulk_kinds().get(row.row_kind)
    verb = row.verb.replace("_", " ")
    return f"{verb}: {kind.model._meta.verbose_name_plural if kind is not None else row.row_kind}"


def verb_of(row: BulkAction) -> BulkVerb | None:
    kind = bulk_kinds().get(row.row_kind)
    return None if kind is None else kind.verbs.get(row.verb)


def progress_text(row: BulkAction) -> str:
    """Return how many of the rows are done."""
    total = f"{row.total - 1:,}+" if is_capped(row.total) else f"{row.total:,}"
    return words.PROGRESS % {"done": f"{row.performed:,}", "total": total}


def share_of(row: BulkAction) -> int:
    """Return the progress in percent. One that is unfinished has never more than 99."""
    if row.status == BulkStatus.COMPLETED:
        return 100
    return min(99, 100 * row.performed // row.total) if row.total and not is_capped(row.total) else 0


def bulk_story(row: BulkAction, reader: Reader, now: datetime) -> Story:
    """Return the story of a bulk action: how far it is, what was refused, who did it, and why."""
    parts = [
        (row.done, words.DONE),
        (row.refused, words.REFUSED),
        (row.failed, words.FAILED),
        (row.remaining, words.REMAINING),
    ]
    details = [", ".join(f"{count:,} {word}" for count, word in parts)]
    if row.awaiting_code:
        details.append(
            gettext(
                "%s of them had been parked because their code was missing. They are parked again unless a worker "
                "has that code now."
            )
            % row.awaiting_code
        )
    if not row.is_finished:
        details.append(gettext("It waits for %s.") % row.waiting_text(now))
    elif row.error:
        details.append(row.error)
    story = Story(
        title=title_of(row),
        state=str(row.get_status_display()),
        tone=TONES.get(BulkStatus(row.status), Tone.NEUTRAL),
        now=progress_text(row),
        details=details,
        facts=list(_facts(row, reader, now)),
        past=[*_examples(row, reader), *deeds_of_people(row, reader)],
        deeds=deeds_of(row, reader),
        data="",
        planned=[] if row.is_finished else [_rest(row)],
    )
    story.progress = share_of(row)
    return story


def _rest(row: BulkAction) -> Moment:
    """Return what is left to do."""
    return Moment(f"{row.remaining:,} {words.REMAINING}", row.wake_at, Tone.WAITING)


def _facts(row: BulkAction, reader: Reader, now: datetime) -> list[Fact]:
    facts = [
        Fact(str(words.WHO), row.actor_name or "-", page_of_cause(row.actor, reader)),
        Fact(gettext("Reason"), row.reason or "-"),
        Fact(str(words.CONDITIONS), "; ".join(in_words(row.filter)) or str(words.ALL_ROWS)),
        Fact(gettext("Created"), moment_text(row.created_at)),
    ]
    if row.started_at is not None:
        label = gettext("Took") if row.finished_at else gettext("Age")
        facts.append(Fact(label, duration_text((row.finished_at or now) - row.started_at)))
    return facts


def _examples(row: BulkAction, reader: Reader) -> list[Moment]:
    """Return some of the rows that were refused or failed, with links."""
    kind = bulk_kinds().get(row.row_kind)
    name = "" if kind is None else f"{kind.model._meta.app_label}_{kind.model._meta.model_name}"
    return [
        Moment(
            each["row"],
            None,
            Tone.BAD if each["failed"] else Tone.STOPPED,
            each["why"],
            page(name, each["key"], reader) if name else "",
        )
        for each in row.examples
    ]
