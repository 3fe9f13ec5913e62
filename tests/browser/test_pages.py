"""Every page in a real browser: no barrier, no violation of the content security policy, no button for a viewer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from django_ai.automation.queues.models import Pause
from tests.support.console_rows import OPERATOR, VIEWER, Page, pages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]


BUTTONS = """() => [...document.querySelectorAll('#content button, #content input[type=submit], #content a.addlink')]
    .filter(each => each.checkVisibility() && each.type !== 'button' && each.form?.method !== 'get')
    .map(each => each.value || each.innerText)"""

FRAMES = ("add", "history")
"""Pages that are Django's own on every model: one model is enough."""
ANSWERS = ("act", "delete", "confirm", "start", "mute", "preview")
"""Addresses that answer what a form posts."""


def shown_pages(app: str = "") -> Iterator[Page]:
    """Yield the pages that differ from each other and show something, of one layer or of all."""
    seen = set()
    for page in pages():
        if app and page.model._meta.app_label != f"automation_{app}":
            continue
        if page.kind in ANSWERS or (page.kind in FRAMES and page.kind in seen):
            continue
        if page.kind != "add" or page.model is Pause:
            seen.add(page.kind)
            yield page


@pytest.mark.parametrize("app", ["queues", "events", "workflows", "agents", "console"])
def test_no_page_has_a_serious_barrier_or_breaks_the_policy(day, visit, app):
    olga, found = visit(OPERATOR), {}
    for page in shown_pages(app):
        if not any(olga.open(path).status == 200 for path in page.paths):
            found.setdefault("It opens for no row of the day.", []).append(str(page))
            continue
        for each in olga.barriers():
            found.setdefault(each, []).append(str(page))
    assert found == {}


def test_a_viewer_sees_no_button(day, visit):
    vera = visit(VIEWER)
    for page in shown_pages():
        if page.kind not in ("add", "repair"):
            vera.open(page.path)
            assert vera.page.evaluate(BUTTONS) == [], page
