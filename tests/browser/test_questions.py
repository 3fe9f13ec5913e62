"""How many clicks an answer is away from the start page of the admin, as docs/howto/console.md says.

Typing and reading are not counted. A number that changes is changed in the table of the page, too. The commands of the
table are parsed as ``manage.py`` would parse them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from django.core.management import CommandError, get_commands, load_command_class

from django_ai.automation.events.models import EventClaim
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import BulkAction, Pause
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.console_rows import OPERATOR

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "console.md"
ROW = re.compile(
    r"^\| (?P<question>[^|]+?) \| (?P<way>[^|]+?) \| (?P<clicks>\d) \| (?P<commands>[^|]+?) \|$", re.MULTILINE
)
MOST_CLICKS = 3
"""How many clicks an answer may be away."""
RUNS, RUN = "Workflow runs", "/admin/automation_workflows/workflowrun/{}/change/"
REFUSED = "ValueError: The card of Bob was refused."


def documented() -> dict[str, int]:
    return {row["question"]: int(row["clicks"]) for row in ROW.finditer(GUIDE.read_text())}


def test_each_command_that_the_guide_names_can_be_called():
    rows = list(ROW.finditer(GUIDE.read_text()))
    assert len(rows) > 20
    for row in rows:
        commands = re.findall(r"`([^`]+)`", row["commands"])
        assert commands, row["question"]
        for command in commands:
            name, *arguments = shlex.split(command)
            parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
            parser.parse_args(arguments)


@pytest.mark.parametrize(
    "command", ["automation abolish workflow 17", "automation show workflow", "automation_health --x"]
)
def test_a_command_with_a_mistake_would_be_found(command):
    name, *arguments = shlex.split(command)
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
    with pytest.raises((SystemExit, CommandError)):
        parser.parse_args(arguments)


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.support.project_admin")
def test_each_question_takes_as_many_clicks_as_the_guide_says(day, visit):
    olga, counted = visit(OPERATOR), {}

    def start(page: str):
        return olga.open("/admin/").click(page, exact=True)

    def answered(question: str, *texts: str) -> None:
        for text in texts:
            assert text in olga.text, (question, text)
        counted[question] = olga.clicks

    start("Overview")
    answered("What is broken now?", REFUSED, "LookupError: The guest has no address.")
    answered("What is paused, and why does nothing happen?", "the workflow 'reminder'")
    olga.click(REFUSED)
    answered("Why did this run fail?", 'raise ValueError("The card of Bob was refused.")')
    answered("What happened to this run?", "price continued at another step", "cents: 100 → 110", "attempts: 2")

    start(RUNS)
    answered("What does this run wait for?", "the signal 'desk:answer'")
    olga.click(str(day.waiting.pk), exact=True)
    answered("What comes next in this run?", "then tell, or refuse after the timeout", "tell may follow")

    start("Agenda").click("Tomorrow")
    answered("What comes tomorrow?", "reminder")

    start(RUNS).click(str(day.called_off.pk), exact=True)
    answered("Who cancelled this, and why?", OPERATOR, "The guest has left.")

    start("Actions")
    answered("Who did what lately?", "Paused", "Cancelled", OPERATOR)

    start(RUNS).click(str(day.planned.pk), exact=True)
    answered("Who or what caused this run?", "event 'checkin_due'")
    olga.click("event 'checkin_due'")
    answered("What did this event set off?", f"Workflow reminder #{day.planned.pk}")

    start("Reservations").click(str(day.cancelled), exact=True).click("Automations", exact=True)
    withdrawn = "Withdrawn before it was to start: the condition of its event is no longer true."
    answered("Why did this guest get no reminder?", f"skipped workflow reminder checkin_due {withdrawn}")
    start("Reservations").click(str(day.reminded), exact=True).click("Automations", exact=True)
    answered("What did this reservation set off?", "callback send_invoice", "Event reservation_confirmed")
    answered("What is planned for this reservation?", "workflow reminder", "event checkin_due")

    start("Schedules")
    answered("When does this schedule run next?", "night_audit", " in ")
    start("Workers")
    answered("Which workers are alive?", "alive")

    assert max(counted.values()) <= MOST_CLICKS
    assert counted == {name: clicks for name, clicks in documented().items() if name.endswith("?")}


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.support.project_admin")
def test_each_job_takes_as_many_clicks_as_the_guide_says(day, visit):
    olga, counted = visit(OPERATOR), {}

    def find_failed() -> None:
        olga.open("/admin/").click("Overview", exact=True).click(REFUSED)

    def done(job: str, *texts: str) -> None:
        for text in texts:
            assert text in olga.text, (job, text)
        counted[job] = olga.clicks
        drain()

    find_failed()
    olga.press("Resume: try again now")
    done("Resume a run", "Resumed: 1")

    olga.open("/admin/").click("Problems", exact=True)
    olga.click_on(olga.page.locator("tr", has_text=REFUSED).get_by_role("button", name="Resume these"))
    olga.type("Reason", "The bank answers again.").press("Resume")
    done("Resume all rows with the same error", "The bank answers again.", "1 remaining")
    assert BulkAction.objects.latest("pk").done == 1

    find_failed()
    olga.click("Edit the Context")
    olga.page.get_by_label("Step").select_option("price")
    olga.type("Reason", "Once more from the start.").press("Save and resume")
    done("Retry from a step", "The run was resumed.")
    find_failed()
    olga.click("Edit the Context")
    olga.type("Context", olga.page.get_by_label("Context").input_value().replace("Bob", "Eve"))
    olga.page.get_by_label("Step").select_option("pay")
    olga.press("Save and resume")
    done("Retry from a step with a corrected Context", "The run was resumed.")
    day.failed.refresh_from_db()
    assert day.failed.status == "completed"

    olga.open("/admin/").click("Claims", exact=True).click("message_received", within="#result_list")
    olga.type("Reason", "The guest is looked after.").press("Release")
    done("Release a claim", "Released: 1")
    assert not EventClaim.objects.exists()

    olga.open("/admin/").click(RUNS, exact=True).click(str(day.waiting.pk), exact=True).click("Send a signal")
    olga.type("answer", "yes").press("Send")
    done("Send a signal with a payload to a run", "Sent the signal")
    day.waiting.refresh_from_db()
    assert (day.waiting.status, day.waiting.data["answer"]) == ("completed", "yes")

    olga.open("/admin/").click(RUNS, exact=True).click(str(day.second_waiting.pk), exact=True)
    olga.type("Reason", "She leaves.").press("Cancel")
    done("Cancel a run", "Cancelled: 1")
    assert WorkflowRun.objects.get(pk=day.second_waiting.pk).status == "cancelled"

    olga.open("/admin/").click(RUNS, exact=True).click("Start a workflow")
    olga.page.get_by_label("Workflow").select_option("charge")
    olga.press("Continue").type("guest", "Flo").type("Reason", "She pays at the desk.").press("Start")
    done("Start a workflow", "Started charge")
    assert WorkflowRun.objects.filter(data__guest="Flo", status="completed").exists()

    olga.open("/admin/").click("Pauses", exact=True).click("Add pause")
    olga.page.get_by_label("Target").select_option(label="everything")
    olga.type("Reason", "The database is moved.").click("Save", role="button", exact=True)
    done("Pause everything, or a workflow", "was added successfully")
    assert Pause.objects.filter(reason__contains="The database is moved.").exists()

    assert counted == {name: clicks for name, clicks in documented().items() if not name.endswith("?")}
