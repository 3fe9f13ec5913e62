"""Every action of the admin exists as a command and as a function of the same name."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.contrib.auth.models import User

from django_ai.automation import engine, why
from django_ai.automation.agents.manager import AgentManager
from django_ai.automation.agents.models import AgentRun, HandlerExecution
from django_ai.automation.console.commands.verbs import VERBS
from django_ai.automation.events.models import CallbackExecution, CapturedWrite, Event, EventClaim, Schedule
from django_ai.automation.events.schedules import firing
from django_ai.automation.queues import admin_stories
from django_ai.automation.queues.models import BulkAction, MutedProblem, Pause
from django_ai.automation.workflows.models import Signal, WorkflowRun

OTHER_NAMES = {
    ("EventClaim", "release"): ("release", EventClaim.release),
    ("Pause", "end"): ("unpause", engine.unpause),
    ("Schedule", "fire"): ("fire-now", firing.fire_now),
    ("Schedule", "pause"): ("pause", Schedule.pause),
    ("Schedule", "unpause"): ("unpause", Schedule.unpause),
    ("WorkflowRun", "cancel_at_once"): ("cancel", engine.cancel),
    ("AgentRun", "edit"): ("edit-context", engine.edit_context),
    ("BulkAction", "cancel"): ("bulk", engine.cancel_bulk),
    ("Event", "why"): ("why", why),
}
"""What is called otherwise in the admin, where the button has its row beside it."""
FORMS = {("WorkflowRun", "repair"): ("edit_context", "resume", "fork", "rewind")}
"""Pages that offer several verbs."""
FUNCTIONS = {
    WorkflowRun: engine,
    AgentRun: AgentManager,
    HandlerExecution: AgentManager,
    MutedProblem: engine,
}
ROWS = (Event, CallbackExecution, CapturedWrite, Schedule, Signal, HandlerExecution, BulkAction)
"""Rows that are changed by their own methods."""
OF_DJANGO = {"delete_selected"}


@pytest.fixture
def actions(rf, db) -> list[tuple[type, str]]:
    """Every action and page that changes something, as the model and the name."""
    request = rf.get("/")
    request.user = User.objects.create_superuser("olga")
    found = []
    for model, owner in admin.site._registry.items():
        if isinstance(owner, admin_stories.StoryPage):
            names = {*owner.allowed_actions(request), *admin_stories._row_views.get(model, {})}
            names |= admin_stories._list_views.get(model, {}).keys()
            found += [(model, name) for name in sorted(names - OF_DJANGO)]
    return found


def verbs_of(model: type, name: str) -> list[tuple[str, object]]:
    """Return the commands and functions that an action is."""
    if (model.__name__, name) in OTHER_NAMES:
        return [OTHER_NAMES[model.__name__, name]]
    names = FORMS.get((model.__name__, name), (name,))
    return [(each.replace("_", "-"), _function(model, each)) for each in names]


def _function(model: type, name: str) -> object:
    owners = [FUNCTIONS.get(model), model if model in ROWS else None, engine]
    return next((found for owner in owners if (found := getattr(owner, name, None)) is not None), None)


def test_every_action_of_the_admin_is_a_command_and_a_function(actions):
    assert len(actions) > 25
    missing = []
    for model, name in actions:
        for command, function in verbs_of(model, name):
            if command not in VERBS or not callable(function):
                missing.append((model.__name__, name, command, function))
    assert missing == []


def test_to_start_is_one_of_them(actions):
    assert (WorkflowRun, "start") in actions
    assert verbs_of(WorkflowRun, "start") == [("start", engine.start)]


def test_the_other_names_are_those_of_actions(actions):
    known = {(model.__name__, name) for model, name in actions}
    assert {*OTHER_NAMES, *FORMS} - known == set()
    assert (Pause, "end") in actions
