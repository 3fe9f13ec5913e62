"""``manage.py check`` reports each mistake with an id, the name of the faulty object and a hint."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.core.checks.registry import registry
from django.db import models
from django.db.models.functions import Lower
from django.test import modify_settings, override_settings
from django.test.utils import isolate_apps
from pydantic import BaseModel

from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.checks import check_callbacks, check_definitions, leads_an_index
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.queues.checks import check_broker, check_database, check_secret_key, check_settings
from django_ai.automation.workflows import checks as workflow_checks
from django_ai.automation.workflows.core import (
    complete,
    event_workflow,
    goto,
    on_cancel,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from tests.apps.reservations.models import Room, Suite, Ticket
from tests.support.checked_workflows import Empty, check_workflows, flow, only

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


# -- no problems -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(databases="__all__")  # Django asks each of them what it supports
def test_the_suites_own_project_is_in_order():
    assert [each for each in run_checks() if str(each.id).startswith("automation.")] == []


def test_every_check_is_registered():
    for check in (check_definitions, check_callbacks, check_settings, check_broker, check_secret_key):
        assert check in registry.get_checks()
    assert workflow_checks.check_workflows in registry.get_checks()
    assert check_database in registry.get_checks(include_deployment_checks=True)


# -- SECRET_KEY --------------------------------------------------------------------------------------------------------


GOOD_KEY = "0123456789" * 5


@pytest.mark.parametrize("key", ["short", "a" * 80, "abcd" * 20, "django-insecure-" + GOOD_KEY])
def test_w007_a_key_that_is_easy_to_guess(key):
    with override_settings(SECRET_KEY=key, DEBUG=False):
        problem = only(check_secret_key(None))
        assert problem.id == "automation.W007"
        assert key not in f"{problem.msg}{problem.hint}"
    with override_settings(SECRET_KEY=key, DEBUG=True):
        assert check_secret_key(None) == []
    with override_settings(SECRET_KEY=GOOD_KEY, DEBUG=False):
        assert check_secret_key(None) == []


@modify_settings(INSTALLED_APPS={"remove": "django_q"})
def test_w007_is_about_q2s_pickles():
    with override_settings(SECRET_KEY="short", DEBUG=False):
        assert check_secret_key(None) == []


# -- events ------------------------------------------------------------------------------------------------------------


def test_e102_what_is_no_definition(declare):
    declare(Ticket, EventDefinition("ticket_closed"), "ticket_due")
    problem = only(check_definitions(None))
    assert (problem.id, problem.obj) == ("automation.E102", Ticket)
    assert "'ticket_due'" in problem.msg


def test_e102_a_definition_without_a_list(declare, monkeypatch):
    declare(Ticket)
    monkeypatch.setattr(Ticket, "events", EventDefinition("alone"))
    problem = only(check_definitions(None))
    assert (problem.id, problem.obj) == ("automation.E102", Ticket)
    assert problem.hint == "Write events = [EventDefinition('alone', ...)]."


def test_e103_two_of_one_name(declare):
    declare(Ticket, EventDefinition("ticket_closed"), EventDefinition("ticket_closed"))
    problem = only(check_definitions(None))
    assert problem.id == "automation.E103"
    assert "app.Ticket" in problem.msg
    assert "'ticket_closed' 2 times" in problem.msg


def test_e104_a_date_field_that_does_not_exist(declare):
    declare(Ticket, EventDefinition("ticket_due", date_field="due_on"))
    problem = only(check_definitions(None))
    assert problem.id == "automation.E104"
    assert "'due_on'" in problem.msg
    assert "Did you mean 'due_at'" in problem.hint


def test_e105_a_date_field_that_is_no_date(declare):
    declare(Ticket, EventDefinition("ticket_due", date_field="title"))
    problem = only(check_definitions(None))
    assert problem.id == "automation.E105"
    assert "CharField" in problem.msg
    assert "'due_at'" in problem.hint


def test_w112_a_date_field_without_an_index(monkeypatch):
    monkeypatch.setattr(Ticket._meta.get_field("due_at"), "db_index", False)
    problem = only(check_definitions(None))
    assert problem.id == "automation.W112"
    assert "app.Ticket: the event 'ticket_due' has date_field='due_at'" in problem.msg
    assert "app.Ticket.due_at db_index=True" in problem.hint


def test_w112_looks_at_the_table_that_has_the_column(monkeypatch, declare):
    monkeypatch.setattr(Room._meta.get_field("inspected_on"), "db_index", False)
    declare(Room)
    declare(Suite, EventDefinition("suite_due", date_field="inspected_on"))
    problem = only(check_definitions(None))
    assert "app.Suite: the event 'suite_due'" in problem.msg
    assert "app.Room.inspected_on" in problem.hint


@pytest.mark.parametrize(
    ("options", "is_enough"),
    [
        ({"indexes": [models.Index(fields=["at", "name"], name="i")]}, True),
        ({"indexes": [models.Index(fields=["-at"], name="i")]}, True),
        ({"indexes": [models.Index(fields=["name", "at"], name="i")]}, False),
        ({"indexes": [models.Index(models.F("at").desc(), name="i")]}, True),
        ({"indexes": [models.Index("at", "name", name="i")]}, True),
        ({"indexes": [models.Index(Lower("name"), "at", name="i")]}, False),
        ({"indexes": [models.Index(fields=["at"], condition=models.Q(at__isnull=False), name="i")]}, True),
        ({"indexes": [models.Index(fields=["at"], condition=models.Q(name="a"), name="i")]}, False),
        ({"constraints": [models.UniqueConstraint(fields=["at", "name"], name="i")]}, True),
        ({"constraints": [models.UniqueConstraint(fields=["name", "at"], name="i")]}, False),
        ({"constraints": [models.CheckConstraint(condition=models.Q(at__isnull=False), name="i")]}, False),
        ({"unique_together": [("at", "name")]}, True),
        ({"unique_together": [("name", "at")]}, False),
        ({}, False),
    ],
)
@isolate_apps("tests.apps.reservations")
def test_what_finds_a_range_of_dates(options, is_enough):
    meta = type("Meta", (), {"app_label": "app", **options})
    body = {"name": models.CharField(max_length=9), "at": models.DateTimeField(), "Meta": meta, "__module__": __name__}
    assert leads_an_index(type("Dated", (models.Model,), body)._meta.get_field("at")) is is_enough


@pytest.mark.parametrize("option", ["unique", "primary_key", "db_index"])
@isolate_apps("tests.apps.reservations")
def test_a_date_may_have_an_index_of_its_own(option):
    meta = type("Meta", (), {"app_label": "app"})
    body = {"at": models.DateTimeField(**{option: True}), "Meta": meta, "__module__": __name__}
    assert leads_an_index(type("Dated", (models.Model,), body)._meta.get_field("at"))


@pytest.mark.parametrize("decorator", [on_event, on_event_created, on_event_cancelled])
def test_e106_a_callback_on_an_event_that_nobody_declares(decorator):
    @decorator("reservation_confirmd")
    def greet(event):
        pass

    problem = only(check_callbacks(None))
    assert problem.id == "automation.E106"
    assert "greet" in problem.msg
    assert "'reservation_confirmd'" in problem.msg
    assert "Did you mean 'reservation_confirmed'" in problem.hint


def test_e106_an_event_like_no_other_gets_the_list():
    on_event("zzz")(lambda event: None)
    assert "Known: " in only(check_callbacks(None)).hint


def test_w107_before_an_immediate_event(declare):
    @on_event("reservation_confirmed", offset=-HOUR)
    def early(event):
        pass

    flow(lambda self: complete(), event="reservation_confirmed", offset=-HOUR)
    for problem in (only(check_callbacks(None)), only(check_workflows(None))):
        assert problem.id == "automation.W107"
        assert "immediate" in problem.msg


def test_offsets_that_make_sense_are_no_problem():
    for offset in (-HOUR, HOUR):
        on_event("checkin_due", offset=offset, name=str(offset))(lambda event: None)
    on_event("reservation_confirmed", offset=HOUR)(lambda event: None)
    assert check_callbacks(None) == []


# -- workflows ---------------------------------------------------------------------------------------------------------


def test_e201_a_workflow_on_an_event_that_nobody_declares():
    flow(lambda self: complete(), event="chekin_due")
    problem = only(check_workflows(None))
    assert problem.id == "automation.E201"
    assert "'chekin_due'" in problem.msg
    assert "Did you mean 'checkin_due'" in problem.hint


def to_goto(self):
    return goto("finsh")


def to_goto_method(self):
    return goto(self.finsh)


def to_then(self):
    return sleep(HOUR, then="finsh")


def to_timeout(self):
    return wait("bell", timeout=HOUR, on_timeout="finsh")


def to_timeout_by_position(self):
    return wait("bell", HOUR, "finsh")


def to_event_timeout(self):
    return wait_for_event("document_uploaded", match={}, timeout=HOUR, on_timeout="finsh")


def to_child(self):
    return run_subflow("checked", then="finsh")


@pytest.mark.parametrize(
    "first",
    [to_goto, to_goto_method, to_then, to_timeout, to_timeout_by_position, to_event_timeout, to_child],
    ids=lambda first: first.__name__,
)
def test_e202_a_target_that_does_not_exist(first):
    before = first.__name__
    flow(first)
    first.__name__ = before
    problem = only(check_workflows(None))
    assert problem.id == "automation.E202"
    assert "checked" in problem.msg
    assert "'first'" in problem.msg
    assert "'finsh'" in problem.msg
    assert "Did you mean 'finish'" in problem.hint


def test_e202_a_method_that_is_no_step():
    def first(self):
        return goto(self.helper)

    flow(first)
    problem = only(check_workflows(None))
    assert problem.id == "automation.E202"
    assert "not a step" in problem.msg
    assert "@step()" in problem.hint


@pytest.mark.parametrize("decorator", [on_fail, on_cancel])
def test_e202_a_method_that_only_an_end_enters(decorator):
    @workflow("checked")
    class Checked:
        Context = Empty

        @step(start=True)
        def first(self):
            return goto(self.undo)

        @decorator
        def undo(self):
            return complete()

    problem = only(check_workflows(None))
    assert problem.id == "automation.E202"
    assert f"which is its @{decorator.__name__} and not a step" in problem.msg
    assert "Write a step" in problem.hint


def test_e203_a_wait_for_an_event_that_nobody_declares():
    def first(self):
        return wait_for_event("document_uplaoded")

    flow(first)
    problem = only(check_workflows(None))
    assert problem.id == "automation.E203"
    assert "'document_uplaoded'" in problem.msg
    assert "Did you mean 'document_uploaded'" in problem.hint
    assert "wait(" in problem.hint


def test_e203_also_above_a_step():
    @workflow("checked")
    class Checked:
        Context = Empty

        @step(start=True)
        def first(self):
            return goto(self.second)

        @wait_for_event("document_uplaoded")
        @step()
        def second(self):
            return complete()

    assert only(check_workflows(None)).id == "automation.E203"


def test_w204_a_wait_that_any_entity_can_end():
    def first(self):
        return wait_for_event("document_uploaded")

    flow(first, event="reservation_confirmed")
    problem = only(check_workflows(None))
    assert problem.id == "automation.W204"
    assert "app.Document" in problem.msg
    assert "match=" in problem.hint


def test_w204_also_when_started_by_hand():
    def first(self):
        return wait_for_event("guest_docs_uploaded")

    flow(first)
    assert only(check_workflows(None)).id == "automation.W204"


def by_match(self):
    return wait_for_event("document_uploaded", match={"kind": "visa"})


def any_one(self):
    return wait_for_event("document_uploaded", match={})


def own_entity(self):
    return wait_for_event("guest_docs_uploaded")


def own_signal(self):
    return wait("document_uplaoded")


@pytest.mark.parametrize("first", [by_match, any_one, own_entity, own_signal], ids=lambda first: first.__name__)
def test_waits_that_say_what_they_mean_are_no_problem(first):
    before = first.__name__
    flow(first, event="reservation_confirmed")
    first.__name__ = before
    assert check_workflows(None) == []


class Keyed(BaseModel):
    key: str = ""


def create_keyed(cls, if_exists="", number=0):
    return Empty()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"Context": Keyed}, "its Context has the field 'key'"),
        ({"Context": Empty, "create_context": classmethod(create_keyed)}, "create_context takes 'if_exists'"),
    ],
)
def test_w207_an_argument_that_engine_start_keeps(body, named):
    def first(self):
        return complete()

    workflow("checked")(type("Checked", (), {"first": step(start=True)(first), **body, "__module__": __name__}))
    problem = only(check_workflows(None))
    assert (problem.id, named in problem.msg) == ("automation.W207", True)


def test_w207_is_about_arguments_of_engine_start():
    def first(self):
        return complete()

    body = {"Context": Keyed, "create_context": classmethod(lambda cls, number: Keyed(key=str(number)))}
    workflow("checked")(type("Checked", (), {"first": step(start=True)(first), **body, "__module__": __name__}))
    event_workflow("reservation_confirmed", name="by event")(
        type("ByEvent", (), {"Context": Keyed, "first": step(start=True)(first), "__module__": __name__})
    )
    assert check_workflows(None) == []


# -- settings ----------------------------------------------------------------------------------------------------------


def test_e001_settings():
    with override_settings(AUTOMATION={"LEESE": 1, "BATCH": "20"}):
        found = check_settings(None)
    assert [problem.id for problem in found] == ["automation.E001", "automation.E001"]
    assert "Did you mean 'LEASE'" in found[0].msg


def test_e002_an_executor_that_cannot_be_imported():
    with override_settings(AUTOMATION={"RUNTIME": "nowhere.Executor"}):
        assert only(check_settings(None)).id == "automation.E002"


def test_i004_a_broker_that_looks_once_a_minute(settings):
    cluster = {**settings.Q_CLUSTER}
    cluster.pop("broker_class", None)
    with override_settings(Q_CLUSTER=cluster):
        problem = only(check_broker(None))
    assert problem.id == "automation.I004"
    assert "OrmBroker" in problem.hint
    with override_settings(
        Q_CLUSTER={**cluster, "broker_class": "django_ai.automation.queues.runtimes.q2_brokers.OrmBroker"}
    ):
        assert check_broker(None) == []


class ToOther:
    """A database router that sends the writes of one app to another database."""

    label = ""

    def db_for_write(self, model, **hints):
        return "other" if model._meta.app_label == self.label else None


@pytest.mark.parametrize(
    ("label", "check", "id"),
    [
        ("app", check_definitions, "automation.E101"),
        ("automation_workflows", lambda _: check_database(None, databases=[]), "automation.E005"),
    ],
)
def test_everything_lives_in_one_database(label, check, id, monkeypatch):
    monkeypatch.setattr(ToOther, "label", label)
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.ToOther"]):
        found = check(None)
    assert {problem.id for problem in found} == {id}
    assert "'other'" in found[0].msg
