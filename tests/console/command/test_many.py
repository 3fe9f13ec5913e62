"""``automation bulk``, ``mute`` and ``unmute``."""

from __future__ import annotations

import pytest

from django_ai.automation import engine
from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Action, BulkAction, MutedProblem
from django_ai.automation.workflows.models import WorkflowRun
from tests.apps.reservations.models import Reservation
from tests.support.automation_command import automation

pytestmark = pytest.mark.django_db(transaction=True)


def test_workers_cancel_many_runs(charging):
    for _ in range(3):
        engine.start("charging")
    answer = automation("bulk", "cancel", "--name", "charging", "--reason", "Over.", "--actor", "user:5", "--json")
    bulk = BulkAction.objects.get()
    assert answer.document == {"verb": "bulk", "pk": bulk.pk, "action": "cancel", "kind": "workflow", "total": 3}
    assert (bulk.actor, bulk.reason) == ("user:5", "Over.")
    drain()
    assert set(WorkflowRun.objects.values_list("status", flat=True)) == {"cancelled"}
    assert Action.objects.filter(done="Cancelled", actor="user:5").count() == 3


def test_workers_resume_what_has_the_same_problem(failed):
    answer = automation("bulk", "resume", "workflow", "--same-problem-as", failed.pk)
    assert answer.code == 0
    assert answer.out.startswith("created: bulk action #")
    assert answer.out.endswith("1 row(s) match\n")


def test_a_bulk_action_is_cancelled(charging):
    engine.start("charging")
    bulk = engine.bulk("cancel", name="charging")
    answer = automation("bulk", "--cancel", bulk.pk, "--actor", "user:5", "--reason", "A mistake.", "--json")
    assert answer.document == {"verb": "bulk", "cancelled": bulk.pk}
    bulk.refresh_from_db()
    assert bulk.status == "cancelled"
    assert list(Action.objects.values_list("done", "actor", "reason"))[-1] == ("Cancelled", "user:5", "A mistake.")
    again = automation("bulk", "--cancel", bulk.pk)
    assert (again.code, "has ended already" in again.err) == (1, True)
    assert "There is no bulk action with the primary key 4711." in automation("bulk", "--cancel", 4711).err
    drain()
    assert engine.runs("charging").exclude(status="cancelled").count() == 1


def test_the_actions_of_each_kind():
    assert "cancel" in automation("bulk", "--json").document["kinds"]["workflow"]
    assert "workflow: " in automation("bulk").out


def test_the_rows_of_an_entity(charging):
    one, other = engine.start("charging"), engine.start("charging")
    stay = Reservation.objects.create()
    WorkflowRun.objects.filter(pk=one.pk).update(entity_type="app.reservation", entity_id=str(stay.pk))
    assert automation("bulk", "cancel-at-once", "run", "--entity", f"app.Reservation:{stay.pk}").code == 0
    drain()
    other.refresh_from_db()
    one.refresh_from_db()
    assert (one.status, other.status != "cancelled") == ("cancelled", True)
    assert automation("bulk", "cancel", "--entity", "app.Reservation:4711").code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["canel"], "Did you mean 'cancel'?"),
        (["cancel", "workfloww", "--all"], "Did you mean 'workflow'?"),
        (["cancel", "--name", "chargign"], "Did you mean 'charging'?"),
        (["cancel", "--status", "waitng"], "Did you mean 'waiting'?"),
        (["cancel"], "Say which rows"),
    ],
)
def test_a_wrong_call_creates_nothing(charging, arguments, said):
    answer = automation("bulk", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert not BulkAction.objects.exists()


def test_a_problem_is_muted_and_unmuted(failed, waiting):
    why = ("--reason", "Known.", "--actor", "user:5")
    answer = automation("mute", "workflow", failed.pk, "--until", "2999-01-01", *why)
    assert answer.out.startswith("muted until 2999-01-01 ")
    assert "\x1b" not in answer.out
    muted = MutedProblem.objects.get()
    assert (muted.actor, muted.reason) == ("user:5", "Known.")
    assert automation("mute", "workflow", failed.pk, "--until", "2001-01-01").code == 1
    assert automation("mute", "workflow", waiting.pk).code == 1
    assert automation("unmute", "workflow", failed.pk, "--json").document["unmuted"]
    assert automation("unmute", "workflow", failed.pk).out.startswith("was not muted: ")
    assert not MutedProblem.objects.exists()
