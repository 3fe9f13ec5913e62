"""Pages of one row with a form that calls one verb of the engine: what will happen, what it needs, and why.

A ``VerbPage`` is registered for a model (``offer``). Its link is on the page of a row if the user has the permissions
and the verb makes sense in the state of the row. The verb itself decides again: its refusal is an error of the form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext, override
from django.utils.translation import gettext_lazy as _

from ..db.deadlocks import retry_on_deadlock
from ..db.writer import alias_of
from ..exceptions import AutomationError, InvalidContextError
from ..queues.acting import acting_as
from ..queues.admin_stories import StoryPage, register_row_view
from .context_form import add_field_errors

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

TEMPLATE = "automation_console/verb.html"
MAX_REASON = 1000
MAX_COUNTED = 100
"""Up to how many rows a page counts that a verb will touch."""


def add_reason(form: forms.Form) -> None:
    """Add the last field of each form: why."""
    form.fields["reason"] = forms.CharField(
        label=_("Reason"), required=False, max_length=MAX_REASON, widget=forms.Textarea(attrs={"rows": 2, "cols": 60})
    )


def counted(rows: models.QuerySet[Any]) -> str:
    """Return how many rows there are, as a text that stops at ``MAX_COUNTED``."""
    count = len(rows.order_by().values_list("pk")[: MAX_COUNTED + 1])
    return f"{MAX_COUNTED}+" if count > MAX_COUNTED else str(count)


@dataclass(frozen=True, slots=True)
class VerbPage:
    """A page of one row that calls a verb.

    Attributes:
        name: The last part of its address.
        label: The text of its link, and the title of the page.
        button: The text of its button.
        permissions: The permissions on the model of the row that it needs, such as ``"edit"``.
        make_form: Returns the form of a row; the second argument is what was posted, or None.
        perform: Calls the verb with the row and the cleaned values, and returns what was done, for the user and, in
            English, for the log.
        effects: Returns the sentences that say beforehand what will happen.
        makes_sense: Whether the state of the row allows the verb.
        needs: A further permission, by its full name; empty: none.
    """

    name: str
    label: StrOrPromise
    button: StrOrPromise
    permissions: tuple[str, ...]
    make_form: Callable[[Any, Any], forms.Form]
    perform: Callable[[Any, dict[str, Any]], StrOrPromise]
    effects: Callable[[Any], Sequence[StrOrPromise]]
    makes_sense: Callable[[Any], bool]
    needs: str = ""

    def is_allowed(self, owner: StoryPage, request: HttpRequest) -> bool:
        if self.needs and not request.user.has_perm(self.needs):
            return False
        return all(owner.has_action_permission(each, request) for each in self.permissions)

    def link_text(self, owner: StoryPage, request: HttpRequest, row: Any) -> StrOrPromise:
        """Return the text of the link to the page, or an empty string."""
        return self.label if self.is_allowed(owner, request) and self.makes_sense(row) else ""

    def answer(self, owner: StoryPage, request: HttpRequest, row: Any) -> HttpResponse:
        """Show the form, or do what it asks for, in one transaction."""
        if not self.is_allowed(owner, request):
            raise PermissionDenied
        if request.method in ("GET", "HEAD"):
            return self._page(owner, request, row, self._form(row))
        if request.method != "POST":
            return HttpResponseNotAllowed(["GET", "HEAD", "POST"])
        form = self._form(row, request.POST)
        if form.is_valid():
            try:
                done = self._perform(request, row, form.cleaned_data)
            except InvalidContextError as error:
                add_field_errors(form, error)
            except AutomationError as error:
                form.add_error(None, str(error))
            else:
                messages.success(request, str(done))
                return HttpResponseRedirect(owner.address_of(row))
        return self._page(owner, request, row, form)

    def _form(self, row: Any, given: Any = None) -> forms.Form:
        form = self.make_form(row, given)
        add_reason(form)
        return form

    def _perform(self, request: HttpRequest, row: Any, asked: dict[str, Any]) -> StrOrPromise:
        alias, reason = alias_of(type(row)), asked["reason"]

        def work() -> StrOrPromise:
            with transaction.atomic(using=alias), acting_as(request.user, reason):
                done = self.perform(row, asked)
                with override(None):  # the log is stored, and its readers have other languages
                    LogEntry.objects.log_actions(request.user.pk or 0, [row], CHANGE, f"{done} {reason}".strip())
            return done

        return retry_on_deadlock(alias, work)

    def _page(self, owner: StoryPage, request: HttpRequest, row: Any, form: forms.Form) -> HttpResponse:
        context = {
            **owner.admin_site.each_context(request),
            "opts": owner.opts,
            "original": row,
            "title": f"{self.label}: {row}",
            "form": form,
            "row_url": owner.address_of(row),
            "button": self.button,
            "effects": [gettext("What will happen"), *self.effects(row)],
        }
        return TemplateResponse(request, TEMPLATE, context, status=422 if form.errors else 200)


def offer(model: type[models.Model], page: VerbPage) -> None:
    """Add a page to the rows of ``model``."""
    register_row_view(model, page.name, page.answer, page.link_text)
