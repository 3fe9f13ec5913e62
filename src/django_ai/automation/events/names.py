"""Event names: what the event of an entity is called, and which events a subscriber matches.

The name of a definition may be a template, ``"task_done:{{ instance.pk }}"``: the event of each entity then has its own
name, and a wait for the end of one task names exactly that one. A subscriber may match many events: ``"*"`` stands for
any string, so ``"task_done:*"`` matches every task and ``"*"`` matches every event. A subscriber that gives the
template itself matches all its events.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from ..exceptions import DefinitionError
from .expressions import EXPRESSION, check_expressions, path_of

MAX_NAME = 200
ROOT = "instance"


def is_template(name: str) -> bool:
    return "{{" in name


def is_pattern(name: str) -> bool:
    """Return whether a subscriber's name may match many events."""
    return "*" in name


def check_template(name: str, what: str) -> None:
    """Raise ``DefinitionError`` unless every expression in ``name`` reads plain attributes of the instance."""
    if "*" in name:
        raise DefinitionError(f"{what}: '*' is only for subscribers; remove it from the name of the event.")
    check_expressions(name, what, ROOT)


def render(name: str, instance: Any) -> str:
    """Return the name of the event of ``instance``.

    Raises ``AttributeError`` for a missing attribute, and ``DefinitionError`` for a name that is too long.
    """
    if not is_template(name):
        return name
    rendered = EXPRESSION.sub(lambda found: str(_resolve(instance, found.group(1))), name)
    if len(rendered) > MAX_NAME:
        raise DefinitionError(
            f"The event name {name!r} becomes longer than {MAX_NAME} characters: {rendered[:60]!r}..."
        )
    return rendered


def _resolve(instance: Any, expression: str) -> Any:
    value = instance
    for name in path_of(expression, ROOT) or ():
        value = getattr(value, name)
    return value


def expressions_of(name: str) -> list[str]:
    """Return the first attribute of each expression in a template."""
    return [path[0] for expression in EXPRESSION.findall(name) if (path := path_of(expression, ROOT))]


@lru_cache(maxsize=1024)
def pattern_of(name: str) -> str:
    """Return the pattern that a subscriber's ``name`` matches: a template matches all its events."""
    return EXPRESSION.sub("*", name)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def matches(pattern: str, name: str) -> bool:
    """Return whether a subscriber to ``pattern`` is notified of the event ``name``."""
    if pattern == name or pattern == "*":
        return True
    return "*" in pattern and _compiled(pattern).fullmatch(name) is not None


def may_match(pattern: str, declared: str) -> bool:
    """Return whether a subscriber to ``pattern`` may match an event of the definition ``declared``."""
    theirs = pattern_of(declared)
    if not is_pattern(theirs):
        return matches(pattern, theirs)
    return _patterns_overlap(pattern, theirs)


def _patterns_overlap(one: str, other: str) -> bool:
    """Return whether a string exists that both patterns match.

    Dynamic programming over the suffixes of both, one row for each suffix of ``one``.
    """
    below = [False] * len(other) + [True]
    for position in range(len(other) - 1, -1, -1):
        below[position] = other[position] == "*" and below[position + 1]
    for mine in reversed(one):
        row = [mine == "*" and below[-1]] * (len(other) + 1)
        for position in range(len(other) - 1, -1, -1):
            theirs = other[position]
            if mine == "*":
                row[position] = below[position] or row[position + 1]
            elif theirs == "*":
                row[position] = row[position + 1] or below[position]
            else:
                row[position] = mine == theirs and below[position + 1]
        below = row
    return below[0]


def check_subscription(name: Any, decorator: str) -> str:
    """Return the pattern of a subscriber's ``name``. Raises ``DefinitionError`` for an invalid name."""
    if not isinstance(name, str) or not name.strip():
        raise DefinitionError(
            f'@{decorator} needs the name of an event, as in @{decorator}("confirmed"), or its EventDefinition; got '
            f"{name!r}."
        )
    return pattern_of(name)


ANY = "*"
"""The namespace of a handler, wait or claim that matches events of any namespace, despite its agent or workflow."""


def in_namespace(wanted: str | None, namespace: str) -> bool:
    """Return whether a subscriber with the namespace ``wanted`` matches events of ``namespace``."""
    return wanted in (None, ANY, namespace)


def check_namespace(namespace: Any, what: str) -> str | None:
    """Return a subscriber's ``namespace``. Raises ``DefinitionError`` unless it is None or a string."""
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        raise DefinitionError(
            f"{what}: namespace={namespace!r} must be a non-empty string, or None for events of any namespace."
        )
    return namespace
