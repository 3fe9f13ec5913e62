"""The pages name the module that refreshes them, with its words, and have no inline script or style."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.template import Context, Template
from django.urls import reverse
from django.utils import translation
from pydantic import BaseModel

from django_ai.automation import complete, engine, step, wait, workflow

pytestmark = pytest.mark.django_db(transaction=True)

SCRIPT = re.compile(r'<script type="module" src="[^"]*automation_console/refresh\.js"></script>')


@pytest.fixture
def operator(client):
    user = User.objects.create_superuser("ann", password="x")
    client.force_login(user)
    return client


@pytest.fixture
def run(work):
    @workflow("waits")
    class Waits:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return wait("bell", then=self.end)

        @step()
        def end(self):
            return complete()

    found = engine.start("waits")
    work()
    return found


def page(client, name: str, *arguments: object) -> str:
    return client.get(reverse(f"admin:{name}", args=arguments)).content.decode()


def test_the_overview_and_the_page_of_a_row_are_refreshed(operator, run, work):
    overview = page(operator, "automation_console_overview_changelist")
    waiting = page(operator, "automation_workflows_workflowrun_change", run.pk)
    engine.signal("bell")
    work()
    ended = page(operator, "automation_workflows_workflowrun_change", run.pk)
    for found, seconds in ((overview, 10), (waiting, 5), (ended, 30)):
        assert len(SCRIPT.findall(found)) == 1
        assert f'<div id="automation-live" data-automation-refresh="{seconds}"' in found
        assert 'data-pause="Pause refreshing"' in found
        mine = found[found.index("automation-live") :]
        mine = mine.partition('_form"')[0].partition("<!-- END Content -->")[0]
        assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", mine)


def test_a_row_without_a_story_is_not_refreshed(operator):
    assert "refresh.js" not in page(operator, "automation_workflows_workflowrun_changelist")


def test_words_are_translated_and_escaped():
    with translation.override("de"):
        text = Template("{% load automation_refresh %}<p {% automation_refresh 5 %}></p>").render(Context())
    assert 'data-pause="Aktualisierung anhalten"' in text
    assert "5 s aktualisiert" in text


def test_the_module_reads_only_what_the_page_offers():
    """Each ``data-`` attribute that the module reads is one of the tag, and it evaluates no code."""
    found = finders.find("automation_console/refresh.js")
    assert isinstance(found, str)
    code = Path(found).read_text()
    offered = Template("{% load automation_refresh %}{% automation_refresh 5 %}").render(Context())
    shown = re.findall(r"const \{ ([^}]*) \} = this\.root", code)[0].split(", ")
    read = {*re.findall(r"root\.dataset\.(\w+)", code), *shown}
    words = {name for name in read if name != "automationRefresh"}
    assert words
    assert all(f"data-{word}=" in offered for word in words)
    assert not re.search(r"\beval\(|innerHTML|new Function|\.style\b", code)
