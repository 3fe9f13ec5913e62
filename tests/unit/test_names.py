"""Event names: templates, patterns and invalid names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from django_ai.automation.events import names
from django_ai.automation.events.callbacks import on_event
from django_ai.automation.events.declarations import declared_events, sources_of
from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.exceptions import DefinitionError
from tests.apps.reservations.models import Chore, Document, Reservation, Room, Suite

TASK = SimpleNamespace(pk=7, title="O'Brien", owner=SimpleNamespace(team=SimpleNamespace(name="north")), nothing=None)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("plain", "plain"),
        ("task_done:{{ instance.pk }}", "task_done:7"),
        ("task_done:{{instance.pk}}", "task_done:7"),
        ("{{ instance.pk }}", "7"),
        ("{{ instance.pk }}-{{ instance.title }}.done", "7-O'Brien.done"),
        ("in:{{ instance.owner.team.name }}", "in:north"),
        ("x:{{ instance.nothing }}", "x:None"),
        ("{one} brace", "{one} brace"),
    ],
)
def test_a_template_is_filled_in_from_the_instance(template, name):
    names.check_template(template, "x")
    assert names.render(template, TASK) == name


def test_what_is_filled_in_is_not_read_again():
    assert names.render("{{ instance.title }}", SimpleNamespace(title="{{ instance.pk }}")) == "{{ instance.pk }}"
    assert names.render("{{ instance.title }}", SimpleNamespace(title=r"\1 \g<0>")) == r"\1 \g<0>"


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ instance.method() }}", "no calls"),
        ("{{ instance.title|upper }}", "no calls, no filters"),
        ("{{ instance._state }}", "underscore"),
        ("{{ instance.owner._private }}", "underscore"),
        ("{{ instance.__class__ }}", "underscore"),
        ("{{ instance }}", "instance.field"),
        ("{{ pk }}", "instance.field"),
        ("{{ ctx.pk }}", "instance.field"),
        ("{{ settings.SECRET_KEY }}", "instance.field"),
        ("{{ instance['pk'] }}", "instance.field"),
        ("{{ instance.1 }}", "instance.field"),
        ("{{ }}", "instance.field"),
        ("{% if instance.pk %}", "template tag"),
        ("{# nothing #}", "template tag"),
        ("task:{{ instance.pk", "not closed"),
        ("task: instance.pk }}", "not closed"),
        ("task:*", "'*' is only for subscribers"),
        ("*", "'*' is only for subscribers"),
        ("task:{{ instance.pk }}:*", "'*' is only for subscribers"),
    ],
)
def test_a_definitions_name_reaches_no_further_than_fields(template, named):
    with pytest.raises(DefinitionError) as raised:
        EventDefinition(template)
    assert named in str(raised.value)
    assert "EventDefinition(" in str(raised.value)


def test_what_the_instance_lacks_is_an_error():
    for template in ("{{ instance.other }}", "{{ instance.nothing.name }}"):
        with pytest.raises(AttributeError):
            names.render(template, TASK)


def test_a_name_that_gets_too_long_is_an_error():
    assert len(names.render("{{ instance.title }}", SimpleNamespace(title="x" * 200))) == 200
    with pytest.raises(DefinitionError, match="longer than 200"):
        names.render("{{ instance.title }}", SimpleNamespace(title="x" * 201))
    assert names.render("x" * 300, TASK) == "x" * 300  # EventDefinition checks the length of a plain name


def test_the_attributes_that_a_template_begins_with():
    assert names.expressions_of("a:{{ instance.pk }}:{{ instance.owner.team.name }}") == ["pk", "owner"]
    assert names.expressions_of("plain") == []


@pytest.mark.parametrize(
    ("pattern", "name", "meant"),
    [
        ("task", "task", True),
        ("task", "task2", False),
        ("task", "Task", False),
        ("*", "anything", True),
        ("*", "", True),
        ("task:*", "task:7", True),
        ("task:*", "task:", True),
        ("task:*", "task", False),
        ("*:7", "task:7", True),
        ("a*c", "abbbc", True),
        ("a*c", "abcd", False),
        ("a*b*c", "a1b2c", True),
        ("**", "anything", True),
        ("task.*", "taskX7", False),
        ("task[1]*", "task1", False),
        ("a?c*", "abc", False),
        ("task:*", "task:1\n2", True),
    ],
)
def test_who_means_what(pattern, name, meant):
    assert names.matches(names.pattern_of(pattern), name) is meant


def test_the_text_of_a_template_means_all_its_events():
    assert names.pattern_of("task:{{ instance.pk }}:done") == "task:*:done"
    assert names.matches(names.pattern_of("task:{{ instance.pk }}"), "task:7")
    assert names.pattern_of("task:*") == "task:*"


@pytest.mark.parametrize(
    ("pattern", "declared", "may"),
    [
        ("task_done", "task_done", True),
        ("task_done", "task_due", False),
        ("task:7", "task:{{ instance.pk }}", True),
        ("task:*", "task:{{ instance.pk }}", True),
        ("*", "task:{{ instance.pk }}", True),
        ("*", "task", True),
        ("tisk:7", "task:{{ instance.pk }}", False),
        ("task:7:x", "task:{{ instance.pk }}:y", False),
        ("task:*:y", "task:{{ instance.pk }}:y", True),
        ("ta*", "task:{{ instance.pk }}", True),
        ("*done", "task:{{ instance.pk }}", True),
        ("a*", "{{ instance.pk }}:done", True),
    ],
)
def test_which_declarations_a_subscriber_may_hear(pattern, declared, may):
    """``"*done"`` and ``"task:*"`` both match ``"task:done"``, although neither pattern contains the other."""
    assert names.may_match(pattern, declared) is may


def test_sources_of_a_pattern():
    assert {each.owner for each in sources_of("reservation_*")} == {Reservation}
    assert {each.owner for each in sources_of("document_uploaded")} == {Document}
    assert sources_of("nothing") == []
    assert len(sources_of("*")) == sum(map(len, declared_events().values()))


def test_declarations_are_read_again_when_they_change(declare):
    assert sources_of("chore:5") == []
    declare(Chore, EventDefinition("chore:{{ instance.pk }}"))
    assert [each.owner for each in sources_of("chore:5")] == [Chore]
    assert {each.owner for each in sources_of("room_*")} == {Room}
    declare(Room)
    declare(Suite)
    assert sources_of("room_*") == []


@pytest.mark.parametrize("name", ["", " ", None, 5, b"x", ["x"]])
def test_a_subscription_has_a_name(name):
    with pytest.raises(DefinitionError, match='@on_event needs the name of an event, as in @on_event\\("confirmed"\\)'):
        on_event(name)


@pytest.mark.parametrize("namespace", ["", 5, ["north"], lambda event: "north"])
def test_a_subscribers_namespace_is_a_text(namespace):
    with pytest.raises(DefinitionError, match="must be a non-empty string, or None for events of any namespace"):
        names.check_namespace(namespace, "x")
    assert names.check_namespace("north", "x") == "north"
    assert names.check_namespace(None, "x") is None
