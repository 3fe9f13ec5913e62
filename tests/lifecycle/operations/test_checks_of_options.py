"""``manage.py check``: event options, templated names, patterns and matches."""

from __future__ import annotations

from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import models

from django_ai.automation import register_events
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.checks import check_callbacks, check_definitions
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.zones import is_zone_field
from django_ai.automation.workflows.core import complete, goto, step, wait, wait_for_event, workflow
from tests.apps.reservations.models import Hotel, Reservation, Suite, Ticket, Trip
from tests.support.checked_workflows import Empty, Titled, check_workflows, flow, only

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("options", "warns"),
    [
        ({}, True),
        ({"condition": lambda stay: True}, True),
        ({"trigger": EventTrigger.UPDATE, "watch_fields": ["status"]}, False),
        ({"trigger": EventTrigger.CREATE}, False),
        ({"rearm": True, "condition": lambda stay: True}, False),
        ({"date_field": "checkin_at"}, False),
    ],
)
def test_w113_an_event_that_occurs_once_under_a_name_that_may_change(declare, options, warns):
    declare(Reservation, EventDefinition("stay_{{ instance.status }}", **options))
    found = [each for each in check_definitions(None) if each.id == "automation.W113"]
    assert len(found) == warns
    if warns:
        assert "named after what 'status' is then" in found[0].msg
        assert "watch_fields=['status']" in found[0].hint


@pytest.mark.parametrize("name", ["stay_{{ instance.pk }}", "stay_{{ instance.guest.name }}", "stay_{{ instance.id }}"])
def test_names_that_do_not_change_are_no_problem(declare, name):
    declare(Reservation, EventDefinition(name))
    assert "automation.W113" not in {each.id for each in check_definitions(None)}


def test_e108_a_watched_field_that_does_not_exist(declare):
    declare(Ticket, EventDefinition("ticket_changed", watch_fields=["title", "titel"]))
    problem = only(check_definitions(None))
    assert (problem.id, problem.obj) == ("automation.E108", Ticket)
    assert "'ticket_changed' watches 'titel'" in problem.msg
    assert "Did you mean 'title'" in problem.hint


def test_e108_a_relation_of_many_rows_cannot_be_watched(declare):
    declare(Reservation, EventDefinition("stay_changed", watch_fields=["documents"]))
    problem = only(check_definitions(None))
    assert problem.id == "automation.E108"
    assert "A to-many relation cannot be watched" in problem.hint


def test_watched_columns_by_either_name_are_no_problem(declare):
    declare(Reservation, EventDefinition("stay_changed", watch_fields=["guest", "guest_id", "status", "id"]))
    declare(Suite, EventDefinition("suite_changed", watch_fields=["is_clean", "stars"]))
    assert check_definitions(None) == []


def test_e118_a_compared_field_that_does_not_exist(declare):
    declare(Ticket, EventDefinition("closed", was={"opn": True}, becomes={"open": False}))
    problem = only(check_definitions(None))
    assert (problem.id, problem.obj) == ("automation.E118", Ticket)
    assert "the event 'closed' compares 'opn'" in problem.msg
    assert "Did you mean 'open'" in problem.hint


def test_e118_a_relation_of_many_rows_cannot_be_compared(declare):
    declare(Reservation, EventDefinition("documented", becomes={"documents": 5}))
    problem = only(check_definitions(None))
    assert problem.id == "automation.E118"
    assert "A to-many relation cannot be compared" in problem.hint


@pytest.mark.parametrize(
    ("wanted", "problem", "hint"),
    [
        ({"open": None}, "with None, and the field is never NULL", "null=True"),
        ({"due_at": "soon"}, "with 'soon', which is no value of a DateTimeField", "Give a value"),
        ({"due_at": ["2030-01-01T00:00Z", "soon"]}, "with 'soon'", "Give a value"),
    ],
)
def test_w119_a_value_that_the_field_never_has(declare, wanted, problem, hint):
    declare(Ticket, EventDefinition("changed", becomes=wanted))
    found = only(check_definitions(None))
    assert (found.id, found.obj) == ("automation.W119", Ticket)
    assert problem in found.msg
    assert hint in found.hint


def test_w119_a_value_that_is_none_of_the_choices(declare, monkeypatch):
    monkeypatch.setattr(
        Reservation._meta.get_field("status"), "choices", [("draft", "Draft"), ("published", "Published")]
    )
    declare(Reservation, EventDefinition("published", was={"status": "draft"}, becomes={"status": "publishd"}))
    found = only(check_definitions(None))
    assert "with 'publishd', which is none of its choices" in found.msg
    assert "Did you mean 'published'" in found.hint


def test_compared_values_that_the_field_can_have_are_no_problem(declare):
    declare(
        Reservation,
        EventDefinition("a", was={"status": ["x", "y"], "guest": None}, becomes={"guest_id": "5"}),
        EventDefinition("b", becomes={"checkin_at": lambda value: value is None, "docs": 1}),
    )
    assert check_definitions(None) == []


def test_e109_a_name_of_a_field_that_does_not_exist(declare):
    declare(Ticket, EventDefinition("closed:{{ instance.titel }}"))
    problem = only(check_definitions(None))
    assert (problem.id, problem.obj) == ("automation.E109", Ticket)
    assert "'titel'" in problem.msg
    assert "Did you mean 'title'" in problem.hint


@pytest.mark.parametrize("slot", ["pk", "id", "guest_id", "guest.name", "status", "documents", "__str__"[2:5]])
def test_names_that_the_model_can_fill_in(declare, slot):
    declare(Reservation, EventDefinition(f"saved:{{{{ instance.{slot} }}}}", trigger=EventTrigger.CREATE))
    assert [problem.id for problem in check_definitions(None)] == ([] if slot != "str" else ["automation.E109"])


def test_subscribers_to_many_events_are_no_problem(declare):
    declare(Ticket, EventDefinition("ticket:{{ instance.title }}:closed"))
    for name in (
        "*",
        "ticket:*",
        "ticket:x:closed",
        "ticket:{{ instance.title }}:closed",
        "reservation_*",
        "*:closed",
        "tick*",
    ):
        on_event(name, name=name)(lambda event: None)
    assert [problem.msg for problem in check_callbacks(None)] == []


@pytest.mark.parametrize("name", ["tikket_*", "ticket:x", "ticket:x:due", "ticket:{{ instance.title }}"])
def test_e106_subscribers_to_many_events_that_nobody_declares(declare, name):
    declare(Ticket, EventDefinition("ticket:{{ instance.title }}:closed"))
    on_event(name)(lambda event: None)
    if name == "ticket:{{ instance.title }}":  # "ticket:*" can match "ticket:x:closed"
        assert check_callbacks(None) == []
    else:
        assert only(check_callbacks(None)).id == "automation.E106"


def test_e201_a_workflow_on_a_pattern_that_nobody_declares():
    flow(lambda self: complete(), event="tikket_*")
    problem = only(check_workflows(None))
    assert problem.id == "automation.E201"
    assert "'tikket_*'" in problem.msg


def by_wrong_key(self):
    return wait_for_event("document_uploaded", match={"kimd": "visa"})


def by_wrong_relation(self):
    return wait_for_event("document_uploaded", match={"kind": "visa", "reservation__gest__name": "{{ ctx.title }}"})


def by_wrong_lookup(self):
    return wait_for_event("document_uploaded", match={"kind__containz": "v"})


def by_wrong_key_of_wait(self):
    return wait.for_event("document_uploaded", match={"kimd__in": ["visa"]})


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (by_wrong_key, "'kimd'"),
        (by_wrong_relation, "'reservation__gest__name'"),
        (by_wrong_lookup, "'kind__containz'"),
        (by_wrong_key_of_wait, "'kimd__in'"),
    ],
    ids=lambda first: getattr(first, "__name__", ""),
)
def test_e205_a_match_of_what_the_model_does_not_have(first, named):
    before = first.__name__
    flow(first, context=Titled)
    first.__name__ = before
    problem = only(check_workflows(None))
    assert problem.id == "automation.E205"
    assert f"match compares {named}, which app.Document does not have" in problem.msg
    assert "'first' waits for the event 'document_uploaded'" in problem.msg
    assert problem.hint


def test_e205_says_what_is_near():
    flow(by_wrong_key)
    by_wrong_key.__name__ = "by_wrong_key"
    assert "Did you mean 'kind'?" in only(check_workflows(None)).hint


def test_e205_also_above_a_step():
    @workflow("checked")
    class Checked:
        Context = Empty

        @step(start=True)
        def first(self):
            return goto(self.second)

        @wait_for_event("document_uploaded", match={"kimd": 1})
        @step()
        def second(self):
            return complete()

    problem = only(check_workflows(None))
    assert problem.id == "automation.E205"
    assert "'second'" in problem.msg


def by_many(self):
    return wait_for_event("reservation_confirmed", match={"documents__kind__in": ["visa"], "guest__in": [1]})


def by_relation(self):
    return wait_for_event(
        "document_uploaded", match={"reservation__guest__name__startswith": "A", "reservation__pk": 5, "kind__in": []}
    )


def by_date(self):
    return wait_for_event("checkin_due", match={"checkin_at__year__gte": 2030, "checkin_at__range": (1, 2)})


@pytest.mark.parametrize("first", [by_many, by_relation, by_date], ids=lambda first: first.__name__)
def test_matches_that_django_understands_are_no_problem(first):
    before = first.__name__
    flow(first)
    first.__name__ = before
    assert [problem.hint for problem in check_workflows(None)] == []


def for_one_task(self):
    return wait_for_event("ticket:{{ ctx.title }}")


def for_nobody(self):
    return wait_for_event("tikket:{{ ctx.title }}")


def test_a_wait_on_a_templated_name(declare):
    declare(Ticket, EventDefinition("ticket:{{ instance.title }}"))
    flow(for_one_task, context=Titled)
    for_one_task.__name__ = "for_one_task"
    assert check_workflows(None) == []
    flow(for_nobody, context=Titled)
    for_nobody.__name__ = "for_nobody"
    assert only(check_workflows(None)).id == "automation.E203"


def test_w107_knows_patterns(declare):
    on_event("reservation_*", offset=-HOUR)(lambda event: None)
    assert only(check_callbacks(None)).id == "automation.W107"
    on_event("check*", offset=-HOUR, name="dates")(lambda event: None)
    assert len(check_callbacks(None)) == 1


def test_options_of_events_are_in_order(declare):
    declare(
        Ticket,
        EventDefinition("made", trigger=EventTrigger.CREATE, namespace="north"),
        EventDefinition("written", trigger=["update", "delete"], namespace=lambda ticket: ticket.title),
        EventDefinition("due", date_field="due_at", rearm=True),
        EventDefinition("named:{{ instance.title }}:{{ instance.pk }}", watch_fields=["title", "open"]),
    )
    assert check_definitions(None) == []


def problems_with_zone(path):
    register_events(Trip, EventDefinition("arrival", date_field="arrives_at", timezone=path))
    return check_definitions(None)


@pytest.mark.parametrize(
    ("path", "what", "hint"),
    [
        ("hotl__tz", "app.Trip has no field 'hotl'", "Did you mean 'hotel'?"),
        ("hotel__tzz", "app.Hotel has no field 'tzz'", "Did you mean 'tz'?"),
        ("hotel__manager__zone", "app.Manager has no field 'zone'", "Known: 'tz'."),
        ("tz", "app.Trip has no field 'tz'", "give a function: timezone=lambda entity"),
        ("CET", "app.Trip has no field 'CET'", "timezone=ZoneInfo('CET')"),
    ],
)
def test_e121_a_path_to_a_time_zone_that_does_not_exist(path, what, hint):
    problem = only(problems_with_zone(path))
    assert (problem.id, problem.obj) == ("automation.E121", Trip)
    assert f"the event 'arrival' has timezone={path!r}, and {what}." in problem.msg
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("hotel", "app.Trip.hotel is a ForeignKey, which does not have the name of a time zone."),
        ("hotel__trip", "app.Hotel.trip is a ManyToOneRel, which does not have the name"),
        ("hotel__trip__hotel__tz", "app.Hotel.trip is a ManyToOneRel, which does not lead to one row."),
        ("nights", "app.Trip.nights is a IntegerField, which does not have the name of a time zone."),
        ("hotel__tz__name", "app.Hotel.tz is a CharField, which does not lead to one row."),
        ("nights__tz", "app.Trip.nights is a IntegerField, which does not lead to one row."),
    ],
)
def test_e122_a_path_to_a_time_zone_through_other_fields(path, what):
    problem = only(problems_with_zone(path))
    assert (problem.id, problem.obj) == ("automation.E122", Trip)
    assert what in problem.msg
    assert "a CharField" in problem.hint


@pytest.mark.parametrize(
    "given",
    ["hotel__tz", "hotel__manager__tz", "Europe/Berlin", ZoneInfo("CET"), lambda trip: trip.tz],
    ids=["path", "reverse", "fixed", "object", "function"],
)
def test_time_zones_that_are_in_order(given):
    assert problems_with_zone(given) == []


def test_a_field_of_a_class_of_its_own_may_have_time_zones(monkeypatch):
    """As the ``TimeZoneField`` of other packages, whose value is a ``ZoneInfo``."""

    class ZoneField(models.Field):
        def get_internal_type(self):
            return "CharField"

    field = ZoneField(max_length=63)
    field.set_attributes_from_name("tz")
    field.model = Hotel
    assert is_zone_field(field)
    monkeypatch.setattr(Hotel._meta, "get_fields", lambda: [field])
    assert problems_with_zone("hotel__tz") == []
