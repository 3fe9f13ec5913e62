"""Expressions: ``{{ root.field }}`` in a string. They read plain attributes of one root and nothing else: no tags,
calls, filters or private names.

Event names have expressions on the instance, matches and waits have expressions on the Context.
"""

from __future__ import annotations

import re

from ..exceptions import DefinitionError

EXPRESSION = re.compile(r"\{\{\s*((?:(?!\}\}).)*?)\s*\}\}")
_PATH = re.compile(r"^([a-z]+)((?:\.[A-Za-z][A-Za-z0-9_]*)+)$")


def path_of(expression: str, *roots: str) -> list[str] | None:
    """Return the attributes that ``expression`` reads from one of ``roots``, or None if it is anything else."""
    found = _PATH.match(expression)
    return found.group(2)[1:].split(".") if found is not None and found.group(1) in roots else None


def check_expressions(template: str, what: str, *roots: str) -> list[list[str]]:
    """Return the attributes that each expression in ``template`` reads. Raises ``DefinitionError``."""
    allowed = f"{{{{ {roots[0]}.field }}}}"
    if "{%" in template or "{#" in template:
        raise DefinitionError(f"{what}: {template!r} has a template tag; only {allowed} is allowed.")
    found = []
    for expression in EXPRESSION.findall(template):
        path = path_of(expression, *roots)
        if path is None:
            raise DefinitionError(
                f"{what}: {{{{ {expression} }}}} is not allowed; write {allowed} (no calls, no filters, no names that "
                "begin with an underscore)."
            )
        found.append(path)
    rest = EXPRESSION.sub("", template)
    if "{{" in rest or "}}" in rest:
        raise DefinitionError(f"{what}: {template!r} has an expression that is not closed.")
    return found
