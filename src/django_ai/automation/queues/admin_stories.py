"""The page of one row in the admin: its story, and a button for each action that the user may execute on it.

A layer above registers how the story of a model is told (``register_story``); without that, the page is Django's.
A button posts to the address ``act`` of the row, which executes the same action as the list does, with the same
permissions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import path, reverse
from django.utils import timezone

from .models import Pause
from .pausable import PausableWakeable

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

    ModelAdmin = admin.ModelAdmin[Any]
else:  # at run time Django's classes are not generic
    ModelAdmin = admin.ModelAdmin

RESUMABLE = ("failed", "parked")
ACTIONS_OF_UNFINISHED = {"cancel", "cancel_at_once", "complete", "pause", "unpause"}


@dataclass(frozen=True, slots=True)
class Reader:
    """Who looks at the page of a row.

    ``site``: the name of the admin site. ``may_see_data``: whether the user may see the Context or payload of the row.
    ``deeds``: the names and labels of the actions that the user may execute on it now. ``may_edit``: whether the user
    may edit its Context. ``links``: the addresses and labels of the forms that the user may open for it now.
    """

    site: str = "admin"
    may_see_data: bool = False
    deeds: tuple[tuple[str, StrOrPromise], ...] = ()
    may_edit: bool = False
    links: tuple[tuple[str, StrOrPromise], ...] = ()


Tell = Callable[[Any, Reader, datetime], Any]

_stories: dict[type[models.Model], tuple[Tell, str]] = {}


def register_story(model: type[models.Model], tell: Tell, template: str) -> None:
    """Let the page of a row of ``model`` show what ``tell(row, reader, now)`` returns.

    ``template``: the name of the template that draws it, as ``story``, and extends that of Django's page.
    """
    _stories[model] = tell, template


RowView = Callable[[Any, HttpRequest, Any], HttpResponse]
RowLabel = Callable[[Any, HttpRequest, Any], "StrOrPromise"]

_row_views: dict[type[models.Model], dict[str, RowView]] = {}
_row_labels: dict[type[models.Model], dict[str, RowLabel]] = {}


def register_row_view(model: type[models.Model], name: str, view: RowView, label: RowLabel | None = None) -> None:
    """Add a page of one row of ``model`` to the admin, at the address ``name`` of the row.

    ``view(admin, request, row)`` is called for users who may view the row, and asks for further permissions itself.
    ``label(admin, request, row)`` returns the text of the link to it on the page of the row; empty: the user may not
    open it, or it makes no sense in the state of the row.
    """
    _row_views.setdefault(model, {})[name] = view
    if label is not None:
        _row_labels.setdefault(model, {})[name] = label


ListView = Callable[[Any, HttpRequest], HttpResponse]
ListLink = Callable[[Any, HttpRequest], "tuple[str, StrOrPromise] | None"]

_list_views: dict[type[models.Model], dict[str, ListView]] = {}
_list_links: dict[type[models.Model], list[ListLink]] = {}


def register_list_view(model: type[models.Model], name: str, view: ListView, link: ListLink) -> None:
    """Add a page beside the list of ``model`` to the admin, at the address ``name`` of the list.

    ``view(admin, request)`` asks for the permissions itself. ``link(admin, request)`` returns the address and the text
    of the link to it above the list; None: the user may not open it.
    """
    _list_views.setdefault(model, {})[name] = view
    _list_links.setdefault(model, []).append(link)


ConfirmMany = Callable[[Any, HttpRequest, Any], HttpResponse | None]

_confirm_many: list[ConfirmMany] = []


def register_confirmation(confirm: ConfirmMany) -> None:
    """Let ``confirm(admin, request, rows)`` answer actions of lists before they are executed. It returns None for those
    that are executed at once."""
    _confirm_many[:] = [confirm]


class StoryPage(ModelAdmin):
    """The page of a row with its story. The subclass says which actions and data the user may use and see."""

    def has_action_permission(self, action: str, request: HttpRequest) -> bool:
        raise NotImplementedError

    def get_urls(self) -> list[Any]:
        views = {"act": _act, **_row_views.get(self.model, {})}
        mine = [
            path(
                f"<path:object_id>/{name}/",
                self.admin_site.admin_view(partial(self.row_view, view)),
                name=self._page(name),
            )
            for name, view in views.items()
        ]
        beside = [
            path(f"{name}/", self.admin_site.admin_view(partial(view, self)), name=self._page(name))
            for name, view in _list_views.get(self.model, {}).items()
        ]
        return [*beside, *mine, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the list, with links to the pages beside it."""
        links = [each for link in _list_links.get(self.model, ()) if (each := link(self, request)) is not None]
        return super().changelist_view(request, {**(extra_context or {}), "beside_list": links})

    def row_view(self, view: RowView, request: HttpRequest, object_id: str) -> HttpResponse:
        """Answer a request for a page of one row."""
        key = unquote(object_id)
        row = self.get_object(request, key)
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, key)  # type: ignore[no-any-return, attr-defined]
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        return view(self, request, row)

    def response_action(  # Django 6.1 adds where the action was chosen
        self, request: HttpRequest, queryset: models.QuerySet[Any], *args: Any, **kwargs: Any
    ) -> HttpResponse | None:
        """Execute an action of the list, or ask first whether so many rows are meant."""
        answers = (confirm(self, request, queryset) for confirm in _confirm_many)
        answer = next((each for each in answers if each is not None), None)
        return answer or super().response_action(request, queryset, *args, **kwargs)

    def address_of(self, row: Any, kind: str = "change") -> str:
        """Return the address of a page of ``row``."""
        return reverse(f"{self.admin_site.name}:{self._page(kind)}", args=[quote(row.pk)])

    def deeds(self, request: HttpRequest, row: Any) -> list[tuple[str, StrOrPromise]]:
        """Return the actions that the user may execute on ``row`` now, with their labels."""
        refused = self.refused_actions(row)
        return [
            (name, text) for name, (_function, text) in self.allowed_actions(request).items() if name not in refused
        ]

    def links(self, request: HttpRequest, row: Any) -> list[tuple[str, StrOrPromise]]:
        """Return the addresses and labels of the forms that the user may open for ``row`` now."""
        labels = {name: label(self, request, row) for name, label in _row_labels.get(self.model, {}).items()}
        return [(self.address_of(row, name), text) for name, text in labels.items() if text]

    def allowed_actions(self, request: HttpRequest) -> dict[str, tuple[Any, StrOrPromise]]:
        """Return the function and the label of each action that the user may execute, by its name."""
        found: dict[str, Any] = self.get_actions(request)
        # Tuples before Django 6.1, and objects from then on.
        plain = {
            name: each if isinstance(each, tuple) else (each.func, name, each.description)
            for name, each in found.items()
        }
        return {name: (function, text) for name, (function, _name, text) in plain.items()}

    def refused_actions(self, row: Any) -> Collection[str]:
        """Return the names of actions that make no sense in the state of ``row``. The action itself decides again: the
        row may change before the button is pressed."""
        # Deleting one row is a page of Django's own, which asks whether that is meant.
        refused = {"delete_selected"} if getattr(row, "status", "") in RESUMABLE else {"delete_selected", "resume"}
        if getattr(row, "is_finished", False):
            refused |= ACTIONS_OF_UNFINISHED
        elif isinstance(row, PausableWakeable):
            refused.add("pause" if Pause.objects.filter(target=row.own_target).exists() else "unpause")
        return refused

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        told = None if obj is None else _stories.get(self.model)
        if told is not None:
            tell, template = told
            may_see_data = self.has_action_permission("view_data", request)
            may_edit = may_see_data and self.has_action_permission("edit", request)
            links = tuple(self.links(request, obj))
            reader = Reader(self.admin_site.name, may_see_data, tuple(self.deeds(request, obj)), may_edit, links)
            context |= {"story": tell(obj, reader, timezone.now()), "act_url": self.address_of(obj, "act")}
        response: Any = super().render_change_form(request, context, add, change, form_url, obj)
        if told is not None:
            response.template_name = template
        return response  # type: ignore[no-any-return]

    def _page(self, kind: str) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_{kind}"


def _act(owner: StoryPage, request: HttpRequest, row: Any) -> HttpResponse:
    """Execute the action that the form names on one row. It takes POST only."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    found = owner.allowed_actions(request).get(request.POST.get("action", ""))
    if found is None:
        raise PermissionDenied
    answer: HttpResponse | None = found[0](owner, request, owner.get_queryset(request).filter(pk=row.pk))
    return answer or HttpResponseRedirect(owner.address_of(row))
