"""Event names: what an entity's event is called, and which events a subscriber means.

The name of a definition may be a template, ``"task_done:{{ instance.pk }}"``: the event of each entity then has a name
of its own, and whoever waits for one task's end names just that one. A subscriber may mean many events: ``"*"`` stands
for any text, so ``"task_done:*"`` is every task's and ``"*"`` is every event there is. The text of a template, given by
a subscriber, means all its events.
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
    """Say whether a subscriber's name means many events."""
    return "*" in name


def check_template(name: str, what: str) -> None:
    """Raise ``DefinitionError`` unless every slot of ``name`` reads plain attributes of the instance."""
    if "*" in name:
        raise DefinitionError(f"{what}: '*' is for those who listen; the name of an event is a text without it.")
    check_expressions(name, what, ROOT)


def render(name: str, instance: Any) -> str:
    """Return the name of the event of ``instance``.

    Raises ``AttributeError`` for what it does not have, and ``DefinitionError`` for a name that gets too long.
    """
    if not is_template(name):
        return name
    text = EXPRESSION.sub(lambda slot: str(_reach(instance, slot.group(1))), name)
    if len(text) > MAX_NAME:
        raise DefinitionError(f"The event name {name!r} becomes longer than {MAX_NAME} characters: {text[:60]!r}...")
    return text


def _reach(instance: Any, slot: str) -> Any:
    value = instance
    for name in path_of(slot, ROOT) or ():
        value = getattr(value, name)
    return value


def expressions_of(name: str) -> list[str]:
    """Return the attributes of the instance that the slots of a template begin with."""
    return [path[0] for slot in EXPRESSION.findall(name) if (path := path_of(slot, ROOT))]


@lru_cache(maxsize=1024)
def pattern_of(name: str) -> str:
    """Return what a subscriber means by ``name``: a template stands for all its events."""
    return EXPRESSION.sub("*", name)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def means(pattern: str, name: str) -> bool:
    """Say whether a subscriber to ``pattern`` hears the event ``name``."""
    if pattern == name or pattern == "*":
        return True
    return "*" in pattern and _compiled(pattern).fullmatch(name) is not None


def overlap(pattern: str, declared: str) -> bool:
    """Say whether a subscriber to ``pattern`` may hear an event of a definition that is called ``declared``."""
    theirs = pattern_of(declared)
    if not is_pattern(theirs):
        return means(pattern, theirs)
    return _meet(pattern, theirs)


def _meet(one: str, other: str) -> bool:
    """Say whether there is a text that both patterns mean. Row by row: whether the rests of both from here on meet."""
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
    """Return ``name`` as a subscriber means it. Raises ``DefinitionError`` for what is no name."""
    if not isinstance(name, str) or not name.strip():
        raise DefinitionError(
            f'@{decorator} needs the name of an event, as in @{decorator}("confirmed"); got {name!r}.'
        )
    return pattern_of(name)


ANY = "*"
"""The namespace of a handler, wait or claim that means events of any, whatever its agent or workflow says."""


def in_namespace(wanted: str | None, namespace: str) -> bool:
    """Say whether a subscriber that names ``wanted`` hears events of ``namespace``."""
    return wanted in (None, ANY, namespace)


def check_namespace(namespace: Any, what: str) -> str | None:
    """Return a subscriber's ``namespace``. Raises ``DefinitionError`` unless it is None or a text."""
    if namespace is not None and (not isinstance(namespace, str) or not namespace):
        raise DefinitionError(f"{what}: namespace={namespace!r} must be a text, or None for events of any namespace.")
    return namespace
