"""The pages of the catalogue in the admin: the list, and one page for each entry with its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext

from ...events.models import Schedule
from ...exceptions import AutomationError
from ...workflows.definitions import versions_of
from ..graphs import graph_named, svg
from ..models import Catalogue
from ..start_link import start_url
from ..story import Fact, moment_text
from .counts import TABLES, Counts, count_rows
from .entries import (
    AGENT,
    CALLBACK,
    EVENT,
    KINDS,
    SCHEDULE,
    WORKFLOW,
    CatalogueEntry,
    counts_of_kinds,
    entries,
    find_entry,
)

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Catalogue]
else:  # at run time Django's classes are not generic
    ModelAdmin = admin.ModelAdmin

PAGE_SIZE = 50
NAMES = {WORKFLOW: "name__exact", AGENT: "name__exact", CALLBACK: "callback__exact", EVENT: "declared_as__exact"}


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry as the list shows it. ``counts``: None if the user may not view the rows."""

    entry: CatalogueEntry
    kind: str
    url: str
    counts: Counts | None
    due: str = ""


@admin.register(Catalogue)
class CatalogueAdmin(ModelAdmin):
    """Everything that the code declares. Counts of rows that the user may not view are left out."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        own = path("entry/", self.admin_site.admin_view(self.entry_view), name=f"{self.opts.app_label}_catalogue_entry")
        return [own, *super().get_urls()[:1]]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the entries, those of one kind or those with a word."""
        self._check(request)
        kind, word = request.GET.get("kind", ""), request.GET.get("q", "").strip()
        kind = kind if kind in KINDS else ""
        found = [each for each in entries(kind) if not word or each.has_word(word)]
        page = Paginator(found, PAGE_SIZE).get_page(request.GET.get("p"))
        counts = self._counts(request, list(page.object_list))
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": gettext("Automation: catalogue"),
            "entries": [self._shown(each, counts) for each in page.object_list],
            "kinds": self._kinds(kind, word),
            "kind": kind,
            "word": word,
            "page": page,
            "pages": [
                (number, f"?{urlencode({'kind': kind, 'q': word, 'p': number})}")
                for number in page.paginator.page_range
            ],
            "words": _words(),
        }
        return TemplateResponse(request, "automation_console/catalogue.html", context)

    def entry_view(self, request: HttpRequest) -> HttpResponse:
        """Show one entry, with its graph and links to its rows."""
        self._check(request)
        if not request.GET.get("name"):
            return self.changelist_view(request)
        entry = find_entry(request.GET.get("kind", ""), request.GET["name"])
        if entry is None:
            raise Http404(gettext("The code of this process declares no such thing."))
        version = request.GET.get("version") or None
        graph = _graph(entry, version)
        versions = versions_of(entry.name) if entry.kind == WORKFLOW else []
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": entry.name,
            "shown": self._shown(entry, self._counts(request, [entry])),
            "drawing": graph.drawing,
            "lines": graph.lines,
            "notes": graph.notes,
            "links": list(self._links(request, entry)),
            "start_url": start_url(self.admin_site, request, entry.name) if entry.kind == WORKFLOW else "",
            "versions": [(each, self._address(entry, each), each == (version or versions[-1])) for each in versions]
            if len(versions) > 1
            else [],
            "words": _words(),
        }
        return TemplateResponse(request, "automation_console/catalogue_entry.html", context)

    def _check(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

    def _kinds(self, chosen: str, word: str) -> list[tuple[str, str, int, bool]]:
        counts, labels = counts_of_kinds(), _kind_labels()
        found = [("", gettext("All"), sum(counts.values())), *((kind, labels[kind], counts[kind]) for kind in KINDS)]
        return [
            (f"?{urlencode({'kind': kind, 'q': word})}", label, count, kind == chosen) for kind, label, count in found
        ]

    def _counts(self, request: HttpRequest, found: list[CatalogueEntry]) -> Mapping[tuple[str, str], Counts]:
        return count_rows([each for each in found if _may_view(request, each)], timezone.now())

    def _shown(self, entry: CatalogueEntry, counts: Mapping[tuple[str, str], Counts]) -> Shown:
        own = counts.get(entry.key)
        due = "" if own is None or own.next_at is None else moment_text(own.next_at)
        return Shown(entry, _kind_label(entry.kind), self._address(entry), own, due)

    def _address(self, entry: CatalogueEntry, version: str = "") -> str:
        query = {"kind": entry.kind, "name": entry.name, **({"version": version} if version else {})}
        return f"{reverse(f'{self.admin_site.name}:{self.opts.app_label}_catalogue_entry')}?{urlencode(query)}"

    def _links(self, request: HttpRequest, entry: CatalogueEntry) -> Any:
        """Yield links to the rows of an entry, which the lists of the admin filter by its name."""
        if not _may_view(request, entry):
            return
        model: Any = Schedule if entry.kind == SCHEDULE else TABLES[entry.kind].model
        query = {"q": entry.name} if entry.kind == SCHEDULE else {NAMES[entry.kind].removesuffix("__exact"): entry.name}
        options = model._meta
        try:
            rows = reverse(f"{self.admin_site.name}:{options.app_label}_{options.model_name}_changelist")
        except NoReverseMatch:  # the site of the project leaves the page out
            return
        yield Fact("", str(options.verbose_name_plural).capitalize(), f"{rows}?{urlencode(query)}")
        if entry.kind not in (SCHEDULE, EVENT):
            failed = gettext("Those that have failed")
            yield Fact("", failed, f"{rows}?{urlencode({**query, 'status__exact': 'failed'})}")
        if entry.kind == SCHEDULE:
            target = find_entry(entry.target_kind, entry.target)
            if target is not None:
                yield Fact("", entry.target, self._address(target))


@dataclass(frozen=True, slots=True)
class _Drawn:
    drawing: SafeString
    lines: list[str]
    notes: list[str]


def _graph(entry: CatalogueEntry, version: str | None) -> _Drawn:
    try:
        graph = graph_named(entry.name, kind=entry.kind, version=version if entry.kind == WORKFLOW else None)
    except AutomationError as error:  # a version that this code no longer has
        return _Drawn(SafeString(""), [], [str(error)])
    # The text in it is escaped by ``svg``.
    return _Drawn(mark_safe(svg(graph)), graph.sentences(), list(graph.notes))


def _may_view(request: HttpRequest, entry: CatalogueEntry) -> bool:
    kinds = [entry.target_kind] if entry.kind == SCHEDULE else [entry.kind]
    models = [TABLES[kind].model for kind in kinds] + ([Schedule] if entry.kind == SCHEDULE else [])
    return all(
        request.user.has_perm(f"{each._meta.app_label}.{get_permission_codename('view', each._meta)}")
        for each in models
    )


def _kind_labels() -> dict[str, str]:
    return {
        EVENT: gettext("Events"),
        CALLBACK: gettext("Callbacks"),
        WORKFLOW: gettext("Workflows"),
        AGENT: gettext("Agents"),
        SCHEDULE: gettext("Schedules"),
    }


def _kind_label(kind: str) -> str:
    return {
        EVENT: gettext("Event"),
        CALLBACK: gettext("Callback"),
        WORKFLOW: gettext("Workflow"),
        AGENT: gettext("Agent"),
        SCHEDULE: gettext("Schedule"),
    }[kind]


def _words() -> dict[str, str]:
    return {
        "kind": gettext("Kind"),
        "name": gettext("Name"),
        "what": gettext("What it does"),
        "live": gettext("Unfinished"),
        "done": gettext("Done in 24 h"),
        "broken": gettext("Failed or parked"),
        "due": gettext("Due"),
        "bound": gettext("A count with + is a lower bound: older rows were not read."),
        "hidden": gettext("You may not view its rows."),
        "search": gettext("Search"),
        "filter": gettext("Filter by kind"),
        "pages": gettext("Pages"),
        "none": gettext("Nothing is declared."),
        "no_match": gettext("Nothing matches."),
        "source": gettext("Source"),
        "graph": gettext("Graph"),
        "as_text": gettext("The graph as text"),
        "rows": gettext("Rows"),
        "start": gettext("Start a run"),
        "versions": gettext("Versions"),
        "back": gettext("Catalogue"),
        "home": gettext("Home"),
    }
