"""An operator cancels ten thousand runs from the list, watches the progress, and stops another bulk action halfway."""

from __future__ import annotations

import copy

import pytest

from django_ai.automation import engine
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, BulkAction
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.console_rows import OPERATOR, VIEWER

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.django_db(transaction=True)]

LIST = "/admin/automation_workflows/workflowrun/?status__exact=suspended&name=late_checkout"
PAGE = "/admin/automation_queues/bulkaction/{}/change/"
MANY = 10_000
WHY = "The house is closed for the winter."


def waiting_runs(count: int) -> list[int]:
    """Return the keys of ``count`` runs that wait for a signal: one that has come so far, and copies of it."""
    WorkflowRun.objects.filter(name="late_checkout").delete()
    first = engine.start("late_checkout")
    drain()
    first.refresh_from_db()
    copies = []
    for _ in range(count - 1):
        made = copy.copy(first)
        made._state, made.pk = copy.copy(first._state), None
        made._state.adding = True
        copies.append(made)
    WorkflowRun.objects.bulk_create(copies, batch_size=500)
    return list(WorkflowRun.objects.filter(name="late_checkout", status="suspended").values_list("pk", flat=True))


def work_until(bulk: BulkAction, share: float) -> None:
    """Let a worker carry out a bulk action until this share of its rows is done, and stop between two bites."""

    def is_there() -> bool:
        bulk.refresh_from_db()
        return bulk.performed >= share * bulk.total

    drain(models=[BulkAction], stop=is_there)


def cancel_all(visitor, count: int, reason: str) -> BulkAction:
    """Cancel every row of the list as an operator does, and return the bulk action whose page is then open."""
    visitor.open(LIST)
    visitor.page.locator("#action-toggle").check()
    visitor.page.get_by_text(f"Select all {count} workflow runs").click()
    visitor.run_action("cancel")
    assert f"Concerned: {count:,} (workflow runs)." in visitor.text
    assert "This cannot be undone." in visitor.text
    for condition in ("status = suspended", "name = late_checkout"):
        assert condition in visitor.text
    assert not Action.objects.filter(reason=reason).exists(), "nothing happens before it is confirmed"
    visitor.type("Reason", reason).press("Cancel")
    bulk = BulkAction.objects.latest("pk")
    assert visitor.path == PAGE.format(bulk.pk)
    return bulk


def progress(visitor) -> int:
    """Return what the bar of the page shows, in percent."""
    return int(visitor.page.locator("progress.automation-progress").get_attribute("value"))


def test_ten_thousand_runs_are_cancelled_while_the_page_shows_the_progress(day, visit):
    keys = waiting_runs(MANY)
    assert len(keys) == MANY
    olga = visit(OPERATOR)
    bulk = cancel_all(olga, MANY, WHY)
    assert f"0 of {MANY:,}" in olga.text
    assert progress(olga) == 0
    assert not WorkflowRun.objects.filter(pk__in=keys[:1], status="cancelled").exists(), "not within the request"

    for share in (0.2, 0.6):
        work_until(bulk, share)
        olga.open(olga.path)
        assert 100 * share <= progress(olga) < 100 * share + 5
        assert "Running" in olga.text
        assert f"{bulk.performed:,} of {MANY:,}" in olga.text
    drain()
    olga.open(olga.path)
    assert progress(olga) == 100
    assert "Completed" in olga.text
    assert f"{MANY:,} of {MANY:,}" in olga.text
    assert f"{MANY:,} done, 0 refused, 0 failed, 0 remaining" in olga.text
    assert OPERATOR in olga.text
    assert WHY in olga.text
    assert list(olga.barriers()) == []

    runs = WorkflowRun.objects.filter(name="late_checkout")
    assert runs.filter(status="cancelled", error=f"Cancelled by {OPERATOR}: {WHY}").count() == MANY
    assert Action.objects.filter(done="Cancelled", actor_name=OPERATOR, reason=WHY).count() == MANY
    olga.open("/admin/").click("Bulk actions", exact=True)
    assert f"{MANY:,} of {MANY:,}" in olga.text
    olga.open(f"/admin/automation_workflows/workflowrun/{keys[-1]}/change/")
    assert f"Cancelled by {OPERATOR}: {WHY}" in olga.text
    vera = visit(VIEWER).open(PAGE.format(bulk.pk))
    assert WHY in vera.text
    assert vera.page.get_by_role("button", name="Stop").count() == 0


def test_a_bulk_action_is_stopped_halfway_and_what_is_done_stays_done(day, visit):
    waiting_runs(1000)
    olga = visit(OPERATOR)
    bulk = cancel_all(olga, 1000, WHY)
    work_until(bulk, 0.5)
    olga.open(olga.path)
    assert 50 <= progress(olga) < 75
    olga.type("Reason", "Not these guests.").press("Stop")
    assert f"Cancelled by {OPERATOR}: Not these guests." in olga.text
    assert olga.page.get_by_role("button", name="Stop").count() == 0
    drain()
    bulk.refresh_from_db()
    assert bulk.status == "cancelled"
    runs = WorkflowRun.objects.filter(name="late_checkout")
    assert 0 < bulk.done < 1000
    assert runs.filter(status="cancelled").count() == bulk.done
    assert runs.filter(status="suspended").count() == 1000 - bulk.done
    olga.open(olga.path)
    assert f"{bulk.done:,} of 1,000" in olga.text
    assert "Not these guests." in olga.text
    assert list(olga.barriers()) == []


def test_the_page_of_a_bulk_action_follows_its_progress_by_itself(day, visit):
    waiting_runs(300)
    olga = visit(OPERATOR, is_still=False)
    cancel_all(olga, 300, WHY)
    assert "Refreshed every 5 s." in olga.text
    drain()
    olga.page.wait_for_selector("progress.automation-progress[value='100']", timeout=60_000)
    assert "300 of 300" in olga.text
