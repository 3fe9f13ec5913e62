"""Slots: the ``{{ root.field }}`` in a text. Plain attributes of one root and nothing else: no tags, no calls, no
filters, no private names.

Names of events have slots for fields of the instance, matches and waits for fields of the Context.
"""

from __future__ import annotations

import re

from ..exceptions import DefinitionError

EXPRESSION = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_PATH = re.compile(r"^([a-z]+)((?:\.[A-Za-z][A-Za-z0-9_]*)+)$")


def path_of(slot: str, *roots: str) -> list[str] | None:
    """Return the attributes that ``slot`` names of one of ``roots``, or None if it is anything else."""
    found = _PATH.match(slot)
    return found.group(2)[1:].split(".") if found is not None and found.group(1) in roots else None


def check_expressions(text: str, what: str, *roots: str) -> list[list[str]]:
    """Return the attributes that each slot of ``text`` names. Raises ``DefinitionError`` for everything else."""
    allowed = f"{{{{ {roots[0]}.field }}}}"
    if "{%" in text or "{#" in text:
        raise DefinitionError(f"{what}: {text!r} has a template tag; only {allowed} is allowed.")
    found = []
    for slot in EXPRESSION.findall(text):
        path = path_of(slot, *roots)
        if path is None:
            raise DefinitionError(
                f"{what}: {{{{ {slot} }}}} is not allowed; write {allowed} (no calls, no filters, no names that begin "
                "with an underscore)."
            )
        found.append(path)
    rest = EXPRESSION.sub("", text)
    if "{{" in rest or "}}" in rest:
        raise DefinitionError(f"{what}: {text!r} has an expression that is not closed.")
    return found
