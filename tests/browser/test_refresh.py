"""The overview refreshes itself: what is unfolded and the focus stay, changes are announced, and a button pauses it."""

from __future__ import annotations

import pytest

from django_ai.automation.workflows.models import WorkflowRun
from tests.support.console_rows import OPERATOR

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]

OVERVIEW = "/admin/automation_console/overview/"


def test_a_change_appears_and_what_is_unfolded_and_focused_stays(day, visit):
    olga = visit(OPERATOR, is_still=False).open(OVERVIEW)
    page = olga.page
    page.click("#automation-by-hour > summary")
    page.click("#automation-problems ~ div details > summary")
    page.locator("#automation-by-hour > summary").focus()
    WorkflowRun.objects.filter(pk=day.failed.pk).update(error="ValueError: another reason")
    page.wait_for_selector("text=another reason", timeout=60_000)
    assert page.locator("details[open]").count() == 2
    assert page.locator("#automation-by-hour > summary").evaluate("each => each === document.activeElement")
    page.wait_for_selector("[aria-live] >> text=The page has changed.")


def test_a_paused_page_stays_as_it_is_and_so_does_the_next(day, visit):
    olga = visit(OPERATOR, is_still=False).open(OVERVIEW)
    asked: list[str] = []
    olga.page.on("request", lambda request: asked.append(request.url))
    olga.page.get_by_role("button", name="Pause refreshing").click()
    assert "Refreshing is paused." in olga.text
    olga.page.wait_for_timeout(11_000)
    assert asked == []
    olga.open(f"/admin/automation_workflows/workflowrun/{day.failed.pk}/change/")
    assert "Refreshing is paused." in olga.text
    olga.page.get_by_role("button", name="Refresh again").click()
    assert "Refreshed every 30 s." in olga.text
