"""``AutomationAdminMixin``: the automations of an entity in the project's own admin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone

from ..events.models import Event
from ..events.upcoming import upcoming
from .answers import may_view
from .entity_preview import preview_form
from .entity_views import entity_view, viewed_kinds, words_of_box
from .story import moment_text

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:  # at run time Django's classes are not generic
    ModelAdmin = admin.ModelAdmin

MAX_BOX_ENTRIES = 5
PREVIEW = "automation_console/preview.html"


class AutomationAdminMixin(ModelAdmin):
    """Show the automations of an entity on its page in the admin: name it before ``ModelAdmin``.

    The change form gets a box with what is planned next, and a button to the page *Automations*: what has happened,
    what waits, what is planned, and why a subscriber did or did not act. It and the form that adds an entity have a
    preview that says which timers saving would move, set or cancel, and which events would fire, also of rows in
    inlines. Users who may not view events see nothing of it. Runs, agents and callbacks need the permission to view
    them, and values of Contexts ``view_data_agentrun``.

    A project with a ``change_form_template`` of its own extends ``automation_console/entity_change_form.html``, or
    places ``{% automation_panel original %}`` into it.

    Example:
        In ``admin.py``::

            @admin.register(Reservation)
            class ReservationAdmin(AutomationAdminMixin, admin.ModelAdmin):
                list_display = ("guest", "checkin_at")
    """

    change_form_template = "automation_console/entity_change_form.html"

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view
        name = f"{self.opts.app_label}_{self.opts.model_name}"
        mine = [
            path("<path:object_id>/automations/", view(self.automations_view), name=f"{name}_automations"),
            path("<path:object_id>/automations/preview/", view(self.preview_view), name=f"{name}_preview"),
        ]
        added = path("add/automations/preview/", view(self.add_preview_view), name=f"{name}_add_preview")
        # The longer addresses first: the other one accepts slashes.
        return [added, mine[1], mine[0], *super().get_urls()]

    def automations_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show the page *Automations* of an entity that the user may view."""
        entity = self.get_object(request, unquote(object_id))
        if entity is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[no-any-return, attr-defined]
        if not self.has_view_permission(request, entity):
            raise PermissionDenied
        return entity_view(self.admin_site, request, entity, back=self._page(entity, "change"))

    def preview_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Answer what saving the posted form would do. Nothing is saved."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        entity = self.get_object(request, unquote(object_id))
        if entity is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[no-any-return, attr-defined]
        if not (self.has_change_permission(request, entity) and may_view(request, Event)):
            raise PermissionDenied
        return self._preview(request, entity)

    def add_preview_view(self, request: HttpRequest) -> HttpResponse:
        """Answer what saving the posted form of a new entity would do. Nothing is saved."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not (self.has_add_permission(request) and may_view(request, Event)):
            raise PermissionDenied
        return self._preview(request, None)

    def _preview(self, request: HttpRequest, entity: Model | None) -> HttpResponse:
        found, errors = preview_form(self, request, entity, timezone.now())
        context: dict[str, Any] = {"words": words_of_box(), "preview": found, "errors": errors}
        is_fragment = request.headers.get("X-Requested-With") == "automation-preview"
        context |= {} if is_fragment else {**self.admin_site.each_context(request), "opts": self.opts}
        context["base"] = "automation_console/fragment.html" if is_fragment else "admin/base_site.html"
        return TemplateResponse(request, PREVIEW, context)

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        if obj is None and may_view(request, Event) and self.has_add_permission(request):
            context |= {"automation_preview_url": self._address("add_preview"), "automation_words": words_of_box()}
        if obj is not None and may_view(request, Event):
            context["automation_words"] = words_of_box()
            context["automation_box"] = box_of(request, obj, self._page(obj, "automations"))
            if self.has_change_permission(request, obj):
                context["automation_preview_url"] = self._page(obj, "preview")
        return super().render_change_form(request, context, add, change, form_url, obj)

    def _page(self, entity: Model, kind: str) -> str:
        return self._address(kind, quote(entity.pk))

    def _address(self, kind: str, *keys: str) -> str:
        return reverse(f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{kind}", args=keys)


def box_of(request: HttpRequest, entity: Model, url: str = "") -> dict[str, Any]:
    """Return what the box on a page of ``entity`` shows: the next things that are planned, for what the user may view.
    ``url``: the address of the page with everything."""
    kinds = {*viewed_kinds(request), "event"}
    planned = [each for each in upcoming(entity, limit=4 * MAX_BOX_ENTRIES) if each.kind in kinds]
    return {
        "url": url,
        "words": words_of_box(),
        "entries": [
            {
                "name": each.name,
                "kind": each.kind,
                "reason": each.reason,
                "at": "" if each.at is None else moment_text(each.at),
            }
            for each in planned[:MAX_BOX_ENTRIES]
        ],
        "more": max(len(planned) - MAX_BOX_ENTRIES, 0),
    }
