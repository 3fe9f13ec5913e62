"""Invalid declarations of events, callbacks and workflows raise at import, with the name and the fix."""

from __future__ import annotations

import functools
from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai.automation.events import callbacks
from django_ai.automation.events.callbacks import on_event, on_event_cancelled, on_event_created
from django_ai.automation.events.definitions import EventDefinition, EventTrigger
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError, UnknownStepError, UnknownWorkflowError
from django_ai.automation.workflows import definitions
from django_ai.automation.workflows.core import Retry, complete, event_workflow, on_cancel, on_fail, step, workflow


class Empty(BaseModel):
    pass


def flow(name="Flow", **attributes):
    """Return an undecorated workflow class with these additional ``attributes``."""

    @step(start=True)
    def begin(self):
        return complete()

    return type(name, (), {"Context": Empty, "begin": begin, **attributes})


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": ""}, "''"),
        ({"name": "  "}, "name"),
        ({"name": None}, "None"),
        ({"name": "x" * 201}, "200"),
        ({"name": "a", "condition": True}, "condition=True"),
        ({"name": "a", "payload": {"x": 1}}, "payload="),
        ({"name": "a", "date_field": 5}, "date_field=5"),
        ({"name": "a", "date_field": ""}, "date_field=''"),
        ({"name": "a", "date_field": "at", "grace": 3600}, "grace=3600"),
        ({"name": "a", "date_field": "at", "grace": timedelta(-1)}, "grace="),
        ({"name": "a", "grace": timedelta(1)}, "date_field"),
    ],
)
def test_event_definitions_refuse_nonsense(arguments, named):
    with pytest.raises(DefinitionError) as raised:
        EventDefinition(**arguments)
    assert named in str(raised.value)


def test_the_default_grace_is_a_day_and_a_setting(settings):
    assert EventDefinition("a", date_field="at").grace == timedelta(hours=24)
    settings.AUTOMATION = {**settings.AUTOMATION, "GRACE": timedelta(hours=2)}
    assert EventDefinition("a", date_field="at").grace == timedelta(hours=2)
    assert EventDefinition("a", date_field="at", grace=timedelta(0)).grace == timedelta(0)


# -- callbacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decorator", [on_event, on_event_created, on_event_cancelled])
@pytest.mark.parametrize("name", ["", None, 5])
def test_a_callback_names_an_event(decorator, name):
    with pytest.raises(DefinitionError, match=decorator.__name__):
        decorator(name)


def test_a_callback_without_parentheses_is_refused_with_the_fix():
    with pytest.raises(DefinitionError, match=r'as in @on_event\("'):

        @on_event
        def forgot(event):
            pass


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"offset": 60}, "offset=60"),
        ({"retry": 3}, "retry=3"),
        ({"timeout": 30}, "timeout"),
        ({"timeout": timedelta(0)}, "timeout"),
        ({"name": "x" * 251}, "250"),
    ],
)
def test_callbacks_refuse_nonsense(arguments, named):
    with pytest.raises(DefinitionError) as raised:
        on_event("a", **arguments)(lambda event: None)
    assert named in str(raised.value)


def nothing():
    pass


def keyword(*, event):
    pass


class Heard:
    def __call__(self, event):
        pass

    def method(self, event):
        pass

    @staticmethod
    def static(event):
        pass

    @classmethod
    def by_class(cls, event):
        pass

    def __init__(self, event=None):
        pass


class Deaf:
    def __call__(self):
        pass


CALLBACKS = [on_event, on_event_created, on_event_cancelled]


@pytest.mark.parametrize("decorator", CALLBACKS)
@pytest.mark.parametrize(
    "function",
    [
        nothing,
        keyword,
        lambda event, run: None,
        Deaf(),
        Heard.method,
        staticmethod(nothing),
        functools.partial(Heard.static, 1),
        functools.partial(Heard.static, event=1),
    ],
)
def test_a_callback_that_cannot_take_the_event_is_refused(decorator, function):
    with pytest.raises(DefinitionError, match=rf"@{decorator.__name__}\('a'\): .* is called with \(event\)"):
        decorator("a", name="x")(function)


def wrapper(*args):
    """Accept arguments that the wrapped function does not accept: callers call the wrapper."""
    return nothing()


@pytest.mark.parametrize("decorator", CALLBACKS)
@pytest.mark.parametrize(
    "function",
    [
        lambda event: None,
        lambda other, /, more=1, *, most=2: None,
        lambda event=None: None,
        lambda *args: None,
        lambda *args, **kwargs: None,
        functools.partial(lambda first, event: None, 1),
        functools.partial(lambda event, run: None, run=1),
        functools.wraps(nothing)(wrapper),
        Heard(),
        Heard,
        Heard().method,
        Heard.static,
        staticmethod(Heard.static),
        Heard.by_class,
        print,
        str,
        dict.fromkeys,
    ],
)
def test_a_callback_that_can_take_the_event_is_taken(decorator, function):
    decorator("a", name="x")(function)


@pytest.mark.parametrize("function", [Heard(), functools.partial(Heard.static)])
def test_a_callback_without_a_name_of_its_own_is_given_one(function):
    with pytest.raises(
        DefinitionError, match=r"@on_event\('a'\): .* has no __qualname__ to store executions under; give name="
    ):
        on_event("a")(function)


HOOKS = [on_fail, on_cancel]


def hooked(method):
    """Return what a workflow declares of ``method``, its ``@on_fail`` or ``@on_cancel``."""
    declared = workflow("ends")(flow("Ends", ended=method)).__workflow__
    return declared.on_fail or declared.on_cancel


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lambda: None, "takes no self"),
        (lambda: lambda *, error: None, "takes no self"),
        (lambda: lambda self, reason: None, r"an unknown parameter 'reason'. It takes self and any of error, run"),
        (lambda: lambda self, errors, run: None, "an unknown parameter 'errors'. Did you mean 'error'"),
        (lambda: lambda self, error, /: None, "an unknown parameter 'error'"),
        (lambda: lambda self, error, *, more: None, "an unknown parameter 'more'"),
        (lambda: functools.partial(lambda event: None), "an unknown parameter 'event'. It takes any of error, run"),
    ],
)
def test_a_path_that_cannot_be_called_is_refused(hook, make, said):
    with pytest.raises(DefinitionError, match=rf"@workflow\('ends'\) on Ends: @{hook.__name__}: .*{said}"):
        hooked(hook(make()))


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    ("make", "takes"),
    [
        (lambda: lambda self: None, ()),
        (lambda: lambda self, error: None, ("error",)),
        (lambda: lambda self, run, error: None, ("run", "error")),
        (lambda: lambda self, error=None, *, more=1: None, ("error",)),
        (lambda: lambda *args: None, ()),
        (lambda: lambda self, **given: None, ("error", "run")),
        (lambda: functools.partial(lambda first, error: None, 1), ("error",)),
    ],
)
def test_a_path_takes_what_it_names(hook, make, takes):
    found = hooked(hook(make()))
    assert (found.name, found.hook, found.takes) == ("ended", f"@{hook.__name__}", takes)


@pytest.mark.parametrize("hook", HOOKS)
def test_static_and_class_methods_begin_a_path_too(hook):
    assert hooked(staticmethod(hook(lambda error: None))).takes == ("error",)
    assert hooked(classmethod(hook(lambda cls, run: None))).takes == ("run",)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_path_has_the_options_of_a_step(hook):
    retry, timeout = Retry(max_attempts=7), timedelta(minutes=1)
    found = hooked(hook(retry=retry, atomic=False, timeout=timeout)(lambda self: None))
    assert (found.retry, found.atomic, found.timeout) == (retry, False, timeout)
    assert (hooked(hook(lambda self: None)).retry, hooked(hook()(lambda self: None)).atomic) == (None, True)
    for wrong in ({"retry": 5}, {"timeout": 5}, {"timeout": timedelta(0)}):
        with pytest.raises(DefinitionError, match=rf"@{hook.__name__}: {next(iter(wrong))}"):
            hook(**wrong)
    with pytest.raises(DefinitionError, match=rf"@{hook.__name__} decorates a method"):
        hook(5)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_path_is_no_step(hook):
    def both(self):
        return complete()

    with pytest.raises(DefinitionError, match=r"'ended' is @on_.* and a step"):
        hooked(hook(step()(both)))
    declared = workflow("ends")(flow("Ends", ended=hook(lambda self: None))).__workflow__
    with pytest.raises(UnknownStepError, match=rf"'ended' is its @{hook.__name__} and no step"):
        declared.step("ended")
    assert declared.entered("ended", {"on_fail": "failed", "on_cancel": "cancelled"}[hook.__name__]).hook
    for ending in ("", "completed"):
        with pytest.raises(UnknownStepError):
            declared.entered("ended", ending)


def test_one_method_may_begin_both_paths():
    declared = workflow("ends")(flow("Ends", ended=on_fail(on_cancel(lambda self: None)))).__workflow__
    assert (declared.on_fail.name, declared.on_cancel.name) == ("ended", "ended")
    assert [declared.entered("ended", each).hook for each in ("failed", "cancelled")] == ["@on_fail", "@on_cancel"]


def test_two_functions_of_one_name_on_one_event_are_refused():
    on_event("a", name="greet")(lambda event: None)
    with pytest.raises(DefinitionError, match="'greet'"):

        @on_event("a", name="greet")
        def other(event):
            pass


def test_one_function_may_listen_to_several_events_and_offsets():
    @on_event("a")
    @on_event("a", offset=timedelta(hours=1))
    @on_event("b")
    def listen(event):
        pass

    mine = [each for each in callbacks.all_callbacks() if each.function is listen]
    assert sorted((each.event_name, each.milestone) for each in mine) == [("a", ""), ("a", "+1h"), ("b", "")]
    assert listen(None) is None  # the decorators return the function unchanged


# -- workflows ---------------------------------------------------------------------------------------------------------


def test_two_start_steps_are_refused_by_name():
    @step(start=True)
    def second(self):
        return complete()

    with pytest.raises(DefinitionError) as raised:
        workflow("w")(flow(second=second))
    assert "'begin'" in str(raised.value)
    assert "'second'" in str(raised.value)


def test_no_start_step_is_refused():
    @step()
    def begin(self):
        return complete()

    with pytest.raises(DefinitionError, match="none has it"):
        workflow("w")(flow(begin=begin))


def test_a_step_takes_nothing_but_self():
    @step(start=True)
    def begin(self, event):
        return complete()

    with pytest.raises(DefinitionError, match=r"on .*: @step: .*begin has the signature \(self, event\) but is called"):
        workflow("w")(flow(begin=begin))
    options = step(start=True)(lambda self, tries=3, *more: complete())
    assert workflow("w")(flow(begin=options)).__workflow__.start == "begin"


@pytest.mark.parametrize("context", [None, dict, BaseModel.__new__, Empty()])
def test_a_context_is_a_pydantic_model(context):
    with pytest.raises(DefinitionError, match="Pydantic"):
        workflow("w")(flow(Context=context))


def test_a_workflow_has_a_context():
    @step(start=True)
    def begin(self):
        return complete()

    with pytest.raises(DefinitionError, match="Pydantic"):
        workflow("w")(type("Bare", (), {"begin": begin}))


@pytest.mark.parametrize("name", ["", None, 5])
def test_a_workflow_has_a_name(name):
    with pytest.raises(DefinitionError, match="name"):
        workflow(name)
    with pytest.raises(DefinitionError, match="name"):
        event_workflow(name)


def test_without_parentheses_a_workflow_is_refused():
    with pytest.raises(DefinitionError, match="name"):
        workflow(flow())


@pytest.mark.parametrize(
    "arguments", [{"default_retry": 3}, {"version": ""}, {"version": None}, {"version": 1.5}, {"version": "x" * 51}]
)
def test_workflows_refuse_nonsense(arguments):
    with pytest.raises(DefinitionError):
        workflow("w", **arguments)(flow())


@pytest.mark.parametrize("offset", [60, "1h"])
def test_an_offset_is_a_timedelta(offset):
    with pytest.raises(DefinitionError, match="offset"):
        event_workflow("a", offset=offset)


@pytest.mark.parametrize("arguments", [{"retry": 3}, {"timeout": 30}, {"timeout": timedelta(0)}])
def test_steps_refuse_nonsense(arguments):
    with pytest.raises(DefinitionError):
        step(**arguments)(lambda self: None)


def test_a_step_is_a_function_and_no_generator():
    def several(self):
        yield complete()

    for method in (several, 5, len):
        with pytest.raises(DefinitionError):
            step(start=True)(method)


@pytest.mark.parametrize("hook", HOOKS)
def test_only_one_method_begins_a_path(hook):
    with pytest.raises(DefinitionError, match=rf"only one method can be @{hook.__name__}, and these are: 'one', 'two'"):
        workflow("w")(flow(one=hook(lambda self, error: None), two=hook(lambda self, error: None)))


def test_a_decorator_wants_a_class():
    with pytest.raises(DefinitionError, match="class"):
        workflow("w")(lambda: None)


def test_names_are_unique():
    workflow("w")(flow("One"))
    with pytest.raises(DefinitionError, match="'w'"):
        workflow("w")(flow("Two"))
    workflow("w", version=2)(flow("Two"))


def test_a_module_may_be_imported_again():
    workflow("w")(flow("One"))
    workflow("w")(flow("One"))


def test_event_workflows_are_called_by_module_and_class_unless_named():
    one, two, three = flow("One"), flow("Two"), flow("Three")
    event_workflow("a")(one)
    event_workflow("a")(two)
    event_workflow("a", name="three")(three)
    assert [each.name for each in definitions.workflows_on(Event(event_name="a"))] == [
        f"{__name__}.One",
        f"{__name__}.Two",
        "three",
    ]


def test_two_event_workflows_of_one_given_name_are_refused():
    event_workflow("a", name="mine")(flow("One"))
    with pytest.raises(DefinitionError, match="'mine'"):
        event_workflow("b", name="mine")(flow("Two"))


def test_the_newest_version_is_the_one_that_starts():
    for version in (9, 10, "beta"):
        workflow("w", version=version)(flow(f"V{version}"))
    assert definitions.find_workflow("w").version == "10"
    assert definitions.find_workflow("w", "9").cls.__name__ == "V9"


def test_what_is_not_there_is_answered_with_the_nearest():
    workflow("reindex_listing")(flow())
    with pytest.raises(UnknownWorkflowError, match="Did you mean 'reindex_listing'"):
        definitions.find_workflow("reindex_listings")
    with pytest.raises(UnknownWorkflowError, match="version '7'"):
        definitions.find_workflow("reindex_listing", "7")
    with pytest.raises(UnknownStepError, match="Did you mean 'begin'"):
        definitions.find_workflow("reindex_listing").step("begni")


def test_steps_are_inherited():
    class Base:
        class Context(BaseModel):
            pass

        @step(start=True)
        def begin(self):
            return complete()

    @workflow("child")
    class Child(Base):
        @step()
        def more(self):
            return complete()

    assert set(definitions.find_workflow("child").steps) == {"begin", "more"}


def test_a_definition_cannot_be_changed():
    workflow("w")(flow())
    found = definitions.find_workflow("w")
    with pytest.raises(AttributeError):
        found.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        found.steps["begin"] = None  # type: ignore[index]


def test_a_retry_of_the_step_goes_before_the_workflows():
    mine, theirs = Retry(max_attempts=7), Retry(max_attempts=5)

    @step(retry=mine)
    def own(self):
        return complete()

    workflow("w", default_retry=theirs)(flow(own=own))
    found = definitions.find_workflow("w")
    assert found.retry_of(found.step("own")) == mine
    assert found.retry_of(found.step("begin")) == theirs


# -- options of events -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"trigger": "insert"}, ["trigger='insert'", "EventTrigger.CREATE, UPDATE or DELETE"]),
        ({"trigger": 5}, ["trigger=5"]),
        ({"trigger": []}, ["trigger=[]", "a list of them"]),
        ({"trigger": ["create", "x"]}, ["trigger=['create', 'x']"]),
        ({"trigger": True}, ["trigger=True"]),
        ({"trigger": "create", "date_field": "at"}, ["trigger=", "rearm=True"]),
        ({"watch_fields": ["a"], "date_field": "at"}, ["watch_fields=", "scheduled"]),
        ({"watch_fields": "status"}, ["watch_fields='status'", '["status"]']),
        ({"watch_fields": []}, ["watch_fields=[]"]),
        ({"watch_fields": ["a", 5]}, ["watch_fields=['a', 5]"]),
        ({"watch_fields": [""]}, ["watch_fields=['']"]),
        ({"watch_fields": ["a"], "trigger": "create"}, ["add EventTrigger.UPDATE to trigger="]),
        ({"watch_fields": ["a"], "trigger": ["create", "delete"]}, ["add EventTrigger.UPDATE"]),
        ({"rearm": 1}, ["rearm=1", "True or False"]),
        ({"rearm": "yes"}, ["rearm='yes'"]),
        ({"rearm": True, "was": {"status": "new"}}, ["was= and becomes=", "remove rearm="]),
        ({"namespace": ""}, ["namespace=''", "or a function of the entity"]),
        ({"namespace": 5}, ["namespace=5"]),
        ({"namespace": ["north"]}, ["namespace=['north']"]),
        ({"namespace": "x" * 101}, ["100"]),
        ({"name": "a*"}, ["'a*'", "'*' is only for subscribers"]),
    ],
)
def test_options_of_events_that_make_no_sense(arguments, named):
    with pytest.raises(DefinitionError) as raised:
        EventDefinition(**{"name": "a", **arguments})
    for text in named:
        assert text in str(raised.value)
    assert str(raised.value).startswith("EventDefinition(")


@pytest.mark.parametrize("wrong", [5, 1.5, object()])
def test_watch_fields_that_are_no_list_are_refused_with_the_fix(wrong):
    with pytest.raises(DefinitionError, match="watch_fields="):
        EventDefinition("a", watch_fields=wrong)


def test_options_of_events_that_do():
    assert EventDefinition("a").triggers == frozenset()
    assert EventDefinition("a", trigger="create").triggers == {EventTrigger.CREATE}
    assert EventDefinition("a", trigger=(EventTrigger.DELETE, "update")).triggers == {"delete", "update"}
    watching = EventDefinition("a", watch_fields=iter(["x", "y"]))
    assert (watching.watch_fields, watching.triggers) == (("x", "y"), {EventTrigger.UPDATE})
    assert EventDefinition("a", watch_fields={"x"}, trigger=["create", "update"]).triggers == {"create", "update"}
    assert EventDefinition("a", date_field="at", rearm=True).rearm is True
    assert EventDefinition("a", namespace="x" * 100).namespace_of(None) == "x" * 100
    assert EventDefinition("a", namespace=lambda entity: None).namespace_of(None) == ""
    assert EventDefinition("a").namespace_of(None) == ""


@pytest.mark.parametrize("found", [5, b"north", "x" * 101])
def test_a_namespace_function_returns_a_text(found):
    with pytest.raises(DefinitionError, match="must return a string of at most 100 characters, or None"):
        EventDefinition("a", namespace=lambda entity: found).namespace_of(None)


@pytest.mark.parametrize("decorator", [on_event, on_event_created, on_event_cancelled, event_workflow])
def test_subscribers_have_a_name_and_a_namespace_of_text(decorator):
    for namespace in ("", 5, ["x"]):
        with pytest.raises(DefinitionError, match=f"namespace={namespace!r}".replace("[", r"\[").replace("]", r"\]")):
            decorator("a", namespace=namespace)
    for name in ("", None, 5):
        with pytest.raises(DefinitionError, match=f"{decorator.__name__} needs the name of an event"):
            decorator(name)


def test_workflows_are_found_by_pattern_and_namespace():
    event_workflow("a:*", name="pattern")(flow("One"))
    event_workflow("*", name="all", namespace="north")(flow("Two"))
    event_workflow("a:{{ instance.pk }}", name="template")(flow("Three"))
    event_workflow("b", name="other")(flow("Four"))

    def started(name, namespace=""):
        return [each.name for each in definitions.workflows_on(Event(event_name=name, namespace=namespace))]

    assert started("a:1") == ["pattern", "template"]
    assert started("a:1", "north") == ["pattern", "all", "template"]
    assert started("a:1", "south") == ["pattern", "template"]
    assert started("b", "north") == ["all", "other"]


def test_one_function_may_hear_two_patterns_and_is_found_for_its_execution():
    def heard(event):
        pass

    on_event("a:*", name="one")(heard)
    on_event("*", name="two", offset=timedelta(hours=1))(heard)
    assert {each.name for each in callbacks.callbacks_of("a:1", "")} == {"one", "two"}
    assert callbacks.find_callback("a:1", "one", "").function is heard
    assert callbacks.find_callback("b", "one", "") is None
    assert callbacks.find_callback("b", "two", "") is None
    (two,) = callbacks.callbacks_of("b", "")
    assert callbacks.find_callback("b", "two", two.milestone).function is heard
