"""All texts of the admin are marked for translation, and every catalogue is complete and current."""

from __future__ import annotations

import re
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dateutil.relativedelta import relativedelta
from django.contrib import admin
from django.utils.functional import Promise
from django.utils.translation import get_language, gettext, override
from tools import messages

from django_ai.automation import AUTOMATION_APPS
from django_ai.automation.events.upcoming import offset_text
from django_ai.automation.values.languages import in_english
from django_ai.automation.workflows.models import WorkflowRun, WorkflowStatus

PAGES = [page for model, page in admin.site._registry.items() if model.__module__.startswith(AUTOMATION_APPS)]


@pytest.fixture
def catalogues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the package whose catalogues a test may change."""
    copy = tmp_path / "automation"
    shutil.copytree(messages.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(messages, "PACKAGE", copy)
    return copy


def test_every_catalogue_is_complete_and_current():
    assert list(messages.problems_of()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.model.__name__)
def test_every_label_of_the_admin_can_be_translated(page):
    options = page.model._meta
    unmarked = [
        field.name for field in options.fields if not field.primary_key and not isinstance(field.verbose_name, Promise)
    ]
    unmarked += [
        str(column)
        for column in page.list_display
        if not isinstance(getattr(getattr(page, str(column), column), "short_description", Promise()), Promise)
    ]
    assert unmarked == []
    assert isinstance(options.verbose_name, Promise)
    assert isinstance(options.verbose_name_plural, Promise)
    assert isinstance(options.app_config.verbose_name, Promise)


@pytest.mark.parametrize(
    ("language", "name", "status"),
    [
        ("en", "workflow run", "Waiting"),
        ("de", "Workflow-Lauf", "Wartet"),
        ("es", "ejecución de flujo de trabajo", "En espera"),
        ("fr", "exécution de workflow", "En attente"),
    ],
)
def test_the_admin_speaks_the_language_of_its_user(language, name, status):
    with override(language):
        assert str(WorkflowRun._meta.verbose_name) == name
        assert WorkflowStatus.WAITING.label == status


def test_a_message_that_no_catalogue_has_is_found(catalogues):
    with (catalogues / "agents" / "admin.py").open("a") as file:
        file.write('\nNEW = _("something new")\n')
    assert list(messages.problems_of()) == [
        f"agents, {language}: run make messages, 'something new' is missing" for language in messages.LANGUAGES
    ]
    messages.update()
    assert list(messages.problems_of()) == [
        f"agents, {language}: translate 'something new' in the catalogue, and run make messages"
        for language in messages.LANGUAGES
    ]


def test_the_messages_of_templates_and_plurals_are_found(catalogues):
    template = catalogues / "console" / "templates" / "automation_console" / "new.html"
    template.write_text(
        """{% load i18n %}
        <p title="it's one">{% translate "a new title" %}{% trans 'another' as given %} { it's "no Python" }</p>
          {% blocktranslate with name=row.name %}the row {{ name }}{% endblocktranslate %}
    {% blocktranslate count n=rows|length %}{{ n }} new row{% plural %}{{ n }} new rows{% endblocktranslate %}
        """
    )
    with (catalogues / "agents" / "admin.py").open("a") as file:
        file.write('\nNEW = ngettext("%d new agent", "%d new agents", 2)\n')
    found = messages.messages()
    assert ("%d new agent", "%d new agents") in found["agents"]
    assert {"a new title", "another", "the row %(name)s", ("%(n)s new row", "%(n)s new rows")} <= set(found["console"])
    messages.update()
    missing = list(messages.problems_of())
    assert len(missing) == 5 * len(messages.LANGUAGES)
    assert all("translate " in each for each in missing)


def test_each_form_of_a_plural_is_checked(catalogues):
    with (catalogues / "agents" / "admin.py").open("a") as file:
        file.write('\nNEW = ngettext("%d new agent", "%d new agents", 2)\n')
    messages.update()
    path = catalogues / "agents" / "locale" / "de" / "LC_MESSAGES" / "django.po"
    forms = '"%d new agents"\nmsgstr[0] "{}"\nmsgstr[1] "{}"'
    for one, many, problem in (
        ("%d Agent", "", "translate "),
        ("ein Agent", "%d Agenten", "different placeholders"),
        ("%d Agent", "viele Agenten", "different placeholders"),
        ("%d Agent", "%d Agenten", ""),
    ):
        text = re.sub(r'"%d new agents"\nmsgstr\[0\] ".*"\nmsgstr\[1\] ".*"', forms.format(one, many), path.read_text())
        path.write_text(text)
        messages.update()
        found = [each for each in messages.problems_of() if each.startswith("agents, de")]
        assert len(found) == bool(problem)
        assert all(problem in each for each in found)


@pytest.mark.parametrize(
    ("translation", "problem"),
    [
        ("%s ist beendet.", "django.mo does not match django.po"),
        ("Es ist beendet.", "'%s has already finished.' and its translation have different placeholders"),
        ("", "translate '%s has already finished.'"),
    ],
)
def test_a_translation_that_is_wrong_is_found(catalogues, translation, problem):
    path = catalogues / "queues" / "locale" / "de" / "LC_MESSAGES" / "django.po"
    path.write_text(path.read_text().replace("%s ist bereits beendet.", translation))
    assert any(problem in each for each in messages.problems_of())
    messages.update()
    assert (translation == "%s ist beendet.") == (not list(messages.problems_of()))


# -- what rows wait for, and offsets -----------------------------------------------------------------------------------


OFFSETS = [
    (timedelta(hours=-3), "3 hours before", "3 Stunden vorher", "3 horas antes", "3 heures avant"),
    (
        timedelta(days=1, hours=1),
        "1 day 1 hour after",
        "1 Tag 1 Stunde danach",
        "1 día 1 hora después",
        "1 jour 1 heure après",
    ),
    (
        relativedelta(days=-1, hour=18, minute=0),
        "at 18:00, 1 day before",
        "um 18:00, 1 Tag vorher",
        "a las 18:00, 1 día antes",
        "à 18:00, 1 jour avant",
    ),
    (relativedelta(months=2), "2 months after", "2 Monate danach", "2 meses después", "2 mois après"),
]


@pytest.mark.parametrize("case", OFFSETS, ids=lambda case: case[1])
def test_an_offset_is_told_in_the_language_of_its_reader(case):
    offset, *texts = case
    for language, text in zip(("en", *messages.LANGUAGES), texts, strict=True):
        with override(language):
            assert offset_text(offset) == text
    with override("de"):
        assert offset_text(timedelta(hours=-3), "'checkin_due'") == "3 Stunden vor 'checkin_due'"


def test_what_a_row_waits_for_is_english_except_on_pages():
    run = WorkflowRun(status="waiting", attempt=0, wake_at=datetime(2030, 1, 7, tzinfo=UTC), name="x")
    run.paused_target, run.is_held = "", False
    english = run.waits_for(datetime(2031, 1, 7, tzinfo=UTC))
    assert english.startswith("a worker: due since 2030-01-0")
    with override("de"):
        assert run.waiting_text(datetime(2031, 1, 7, tzinfo=UTC)).startswith("einen Worker: fällig seit 2030-01-0")
        assert run.waits_for(datetime(2031, 1, 7, tzinfo=UTC)) == english
        assert get_language() == "de"


def test_each_thread_keeps_its_language():
    inside, outside = threading.Event(), threading.Event()

    @in_english
    def slowly(first, second):
        first.set()
        assert second.wait(10)
        return gettext("Waiting")

    found = {}

    def perform(language, first, second):
        with override(language):
            found[language] = slowly(first, second), get_language()

    threads = [
        threading.Thread(target=perform, args=("de", inside, outside)),
        threading.Thread(target=perform, args=("fr", outside, inside)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {"de": ("Waiting", "de"), "fr": ("Waiting", "fr")}
