"""An operator finds a failed run, reads why, corrects its Context, and sees it complete."""

from __future__ import annotations

import pytest

from django_ai.automation.queues.drain import drain
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.console_rows import OPERATOR

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]

OVERVIEW = "/admin/automation_console/overview/"


def test_a_failed_run_is_found_read_corrected_and_completes(day, visit):
    olga = visit(OPERATOR)
    olga.open("/admin/").click("Overview")
    assert "ValueError: The card of Bob was refused." in olga.text
    olga.click("ValueError: The card of Bob was refused.")
    assert olga.clicks == 2
    assert olga.path == f"/admin/automation_workflows/workflowrun/{day.failed.pk}/change/"
    assert 'raise ValueError("The card of Bob was refused.")' in olga.text
    assert "console_rows.py" in olga.text, "the frame of the project, without unfolding anything"
    olga.click("Edit the Context")
    context = olga.page.get_by_label("Context")
    olga.type("Context", context.input_value().replace("Bob", "Eve")).type("Reason", "The other card.")
    olga.page.get_by_label("Step").select_option("pay")
    olga.press("Save and resume")
    assert "The run was resumed." in olga.text
    drain()
    olga.open(olga.path)
    assert "Completed" in olga.text
    assert "Its Context was edited" in olga.text
    assert "The other card." in olga.text


def test_a_wrong_context_is_refused_with_the_name_of_the_field(day, visit):
    olga = visit(OPERATOR).open(f"/admin/automation_workflows/workflowrun/{day.failed.pk}/repair/")
    context = olga.page.get_by_label("Context")
    olga.type("Context", context.input_value().replace("110", "0"))
    olga.press("Save and resume")
    assert "cents: " in olga.text
    day.failed.refresh_from_db()
    assert day.failed.status == "failed"


def test_a_run_is_cancelled_with_a_reason_that_the_page_shows(day, visit):
    olga = visit(OPERATOR).open(f"/admin/automation_workflows/workflowrun/{day.waiting.pk}/change/")
    olga.type("Reason", "She stays at home.").press("Cancel")
    drain()
    olga.open(olga.path)
    assert "Cancelled" in olga.text
    assert "She stays at home." in olga.text


def test_many_runs_are_cancelled_from_the_list(day, visit):
    olga = visit(OPERATOR).open("/admin/automation_workflows/workflowrun/?status__exact=suspended")
    olga.page.locator("#action-toggle").check()
    olga.type("Reason", "The house is closed.").run_action("cancel")
    assert "This cannot be undone." in olga.text
    assert WorkflowRun.objects.filter(status="suspended").exists()
    olga.press("Cancel")
    assert not WorkflowRun.objects.filter(status="suspended").exists()


def test_an_anonymous_visitor_is_sent_to_the_login_and_back(day, visit):
    stranger = visit().open(OVERVIEW)
    assert stranger.path == f"/admin/login/?next={OVERVIEW}"
    stranger.type("Username", OPERATOR).type("Password", "x").press("Log in")
    assert stranger.path == OVERVIEW
