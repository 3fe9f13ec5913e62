"""Every public callable documents its parameters, result and errors in Google sections, with an example that parses."""

from __future__ import annotations

import ast
import builtins
import enum
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import docstring_parser
import pytest

from django_ai.automation import exceptions
from django_ai.automation.contrib import webhooks

FACADES = (
    "",
    ".agents.core",
    ".contrib.webhooks",
    ".events.callbacks",
    ".events.claims",
    ".events.emission",
    ".events.services",
    ".testing",
    ".workflows.core",
    ".workflows.engine",
)
CALLED_BY_THE_ENGINE = {"EventDefinition"}
"""Classes that a project instantiates, but whose methods only the engine calls."""


def module_of(facade: str) -> ModuleType:
    return importlib.import_module(f"django_ai.automation{facade}")


def public_methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, value in vars(cls).items() if cls.__name__ not in CALLED_BY_THE_ENGINE else ():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        is_public = not name.startswith("_") or name == "__call__"
        if is_public and inspect.isfunction(function) and function.__module__ == cls.__module__:
            yield f"{cls.__qualname__}.{name}", function


def public_callables() -> dict[str, Any]:
    """Return every class, function and method that the façades offer, by its qualified name."""
    found: dict[str, Any] = {}
    for facade in FACADES:
        module = module_of(facade)
        for public in (getattr(module, name) for name in module.__all__):
            if inspect.isfunction(public):
                found[public.__qualname__] = public
            elif inspect.isclass(public) and not issubclass(public, Exception):
                found |= {public.__qualname__: public, **dict(public_methods(public))}
            elif type(public).__module__.startswith("django_ai."):  # an instance: wait, engine
                found |= {type(public).__qualname__: type(public), **dict(public_methods(type(public)))}
    return found


CALLABLES = public_callables()


@pytest.fixture(params=sorted(CALLABLES))
def public(request: pytest.FixtureRequest) -> Any:
    return CALLABLES[request.param]


def parsed(public: Any) -> docstring_parser.Docstring:
    assert public.__doc__, f"{public.__qualname__} has no docstring"
    return docstring_parser.parse(public.__doc__, docstring_parser.DocstringStyle.GOOGLE)


def parameters_of(public: Any) -> list[inspect.Parameter]:
    if inspect.isclass(public) and (issubclass(public, enum.Enum) or "__init__" not in vars(public)):
        return []
    parameters = inspect.signature(public).parameters.values()
    return [each for each in parameters if each.name != "self"]


def is_made_by_callers(public: Any) -> bool:
    """Return whether a project's code calls the class itself, instead of only receiving its instances."""
    return public.__name__ not in {"Delivery", "TimeMachine", "Upcoming", "Verifier", "Wake", "Why"}


def source_of(public: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(public)))


def examples_of(public: Any) -> list[str]:
    """Return the code blocks of the section ``Example``."""
    _, _, section = inspect.cleandoc(public.__doc__).partition("\nExample:\n")
    blocks = re.split(r"::\n\n", textwrap.dedent(section))[1:]
    return [textwrap.dedent(re.split(r"\n(?=\S)", block)[0]) for block in blocks]


def test_the_public_names_are_found():
    expected = {"on_event", "step", "Engine.start", "AgentManager.spawn", "TimeMachine.advance", "hold", "Retry"}
    assert expected <= CALLABLES.keys()
    assert {"_WaitFunction.__call__", "time_machine", "EventDefinition", "get_context"} <= CALLABLES.keys()


def test_docstring_begins_with_a_summary_of_one_line(public):
    first, *rest = public.__doc__.splitlines()
    assert first.endswith(".")
    assert not rest or not rest[0].strip()


def test_docstring_names_every_parameter(public):
    documented = [each.arg_name.lstrip("*") for each in parsed(public).params if each.args[0] == "param"]
    expected = [each.name for each in parameters_of(public)] if is_made_by_callers(public) else []
    assert documented == expected


def test_docstring_describes_every_parameter(public):
    assert [each.arg_name for each in parsed(public).params if not (each.description or "").strip()] == []


def test_docstring_says_what_is_returned(public):
    if inspect.isclass(public):
        return
    returned = inspect.signature(public).return_annotation
    found = parsed(public).returns
    assert (found is not None) == (returned not in (None, "None", inspect.Signature.empty))


def test_docstring_names_every_error_that_the_function_itself_raises(public):
    raised = {
        node.exc.func.id
        for node in ast.walk(source_of(public))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    if inspect.isclass(public) and not is_made_by_callers(public):
        return  # its methods document their errors
    methods = inspect.isclass(public) and any(name.startswith(f"{public.__qualname__}.") for name in CALLABLES)
    documented = {each.type_name for each in parsed(public).raises}
    assert methods or raised <= documented


def test_documented_errors_exist(public):
    for each in parsed(public).raises:
        name = each.type_name or ""
        homes = (exceptions, webhooks, builtins)
        assert "." in name or any(hasattr(home, name) for home in homes) or name == "ParkedRowError"
        assert (each.description or "").strip()


def test_docstring_has_an_example_that_parses(public):
    found = examples_of(public)
    assert found
    for code in found:
        assert code.strip()
        ast.parse(code)
