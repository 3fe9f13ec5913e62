"""The views of an entity: its automations with the form "why?", and the preview of a change form."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.translation import gettext

from ..events.models import Event
from ..events.why import Answer, why
from ..exceptions import DefinitionError
from ..queues.admin_stories import Reader, StoryPage
from .answers import MODELS, lines_of, may_see_contexts, may_view
from .entity import MAX_EVENTS, EntityPage, entity_story, question_about
from .story import Story, Tone, answer_words

PAGE = "automation_console/entity.html"
READING = ["GET", "HEAD"]


def viewed_kinds(request: HttpRequest) -> list[str]:
    """Return the kinds of subscribers whose rows the user may view."""
    return [kind for kind, model in MODELS.items() if may_view(request, model)]


def entity_view(site: AdminSite, request: HttpRequest, entity: Model, *, back: str = "") -> HttpResponse:
    """Show the automations of an entity that the user may view. ``back``: the address of its own page.

    Raises ``PermissionDenied`` for users who may not view events.
    """
    if not may_view(request, Event):
        raise PermissionDenied
    if request.method not in READING:
        return HttpResponseNotAllowed(READING)
    kinds = viewed_kinds(request)
    reader = Reader(site.name, may_see_contexts(request))
    subscriber = request.GET.get("subscriber", "")
    if subscriber:
        page = question_about(entity, kinds, subscriber)
        _explain(page, entity, reader, kinds)
    else:
        page = entity_story(entity, reader, kinds, timezone.now(), base=request.path)
    return _response(site, request, page, entity, gettext("Automations of %s") % entity, back)


def event_why(owner: StoryPage, request: HttpRequest, event: Event) -> HttpResponse:
    """Show why one subscriber has acted on an event, or has not."""
    if request.method not in READING:
        return HttpResponseNotAllowed(READING)
    kinds, reader = viewed_kinds(request), Reader(owner.admin_site.name, may_see_contexts(request))
    answers = why(event).answers
    story = Story(title=str(event), state=str(event.get_status_display()), tone=Tone.NEUTRAL, now=str(event))
    others = lines_of(answers, reader, kinds, base=request.path, may_see_data=False, detailed=False)
    names = sorted({name for each in answers if each.kind in kinds for name in _names(each)})
    page = EntityPage(story, others, names, subscriber=request.GET.get("subscriber", ""), has_line=False)
    if page.subscriber:
        _explain(page, event, reader, kinds)
    title = gettext("Why? %s") % event
    return _response(owner.admin_site, request, page, event, title, owner.address_of(event))


def _names(answer: Answer) -> tuple[str, ...]:
    """Return the names by which the subscriber may be asked for: a handler, or its agent with all handlers."""
    name = answer.subscriber
    return (name, name.rpartition(".")[0]) if answer.kind == "handler" else (name,)


def _response(
    site: AdminSite, request: HttpRequest, page: EntityPage, subject: Model, title: str, back: str
) -> HttpResponse:
    context = {
        **site.each_context(request),
        "title": title,
        "opts": subject._meta,
        "original": subject,
        "page": page,
        "story": page.story,
        "words": answer_words(),
        "back": back,
    }
    return TemplateResponse(request, PAGE, context)


def _explain(page: EntityPage, entity: Model, reader: Reader, kinds: Collection[str]) -> None:
    if page.subscriber not in page.subscribers:
        page.error = gettext("No subscriber to its events is called “%s”.") % page.subscriber
        return
    try:
        found = why(entity, page.subscriber, limit=MAX_EVENTS)
    except DefinitionError as error:
        page.error = str(error)
        return
    page.asked = lines_of(found.answers, reader, kinds, base="", may_see_data=reader.may_see_data, detailed=True)


def words_of_box() -> dict[str, Any]:
    """Return the labels of the box and of the preview."""
    return {
        "title": gettext("Automations"),
        "all": gettext("All automations, and why"),
        "preview": gettext("What will saving do?"),
        "nothing": gettext("Nothing is planned."),
        "failed": gettext("There is no answer. Load the page again, or try again later."),
        "invalid": gettext("The form has errors. Correct them to see what saving will do."),
    }
