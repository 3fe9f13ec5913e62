"""``On``: an event that cancels a run, as the decorators take it in ``cancel_on=``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from ..events.definitions import EventDefinition, EventName
from ..events.matching.context_expressions import check_expression
from ..events.matching.match import Match
from ..events.names import check_namespace, is_pattern, is_template
from ..exceptions import DefinitionError
from .outcomes import Wait, check_name
from .wait_keys import EVENT_CHANNEL


@dataclass(frozen=True, slots=True)
class On:
    """An event that cancels a run of the workflow, for ``cancel_on=``.

    Args:
        event_name: Name of one event, as a string without ``*``, or its ``EventDefinition``. A string may have
            expressions on the Context: ``"parcel_lost:{{ ctx.parcel_id }}"``.
        match: Lookups on the event's entity (of an emitted event: on its payload) and the values they must have, as a
            dict; values may be expressions on the Context, as in ``{"pk": "{{ ctx.order_id }}"}``. Required, so that no
            event of another entity cancels the run by mistake; ``{}`` means any entity.
        namespace: Only events in this namespace, as a string; ``"*"`` for any. Default: that of the event workflow.

    Raises:
        DefinitionError: If an argument is missing or invalid.

    Example:
        The shipment of an order ends with the order::

            @event_workflow("order_paid", cancel_on=[On("order_cancelled", match={"pk": "{{ ctx.order_id }}"})])
            class Ship:
                class Context(BaseModel):
                    order_id: int
    """

    event_name: EventName
    match: Mapping[str, Any] | None = None
    namespace: str | None = None
    wait: Wait = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = _name_of(self.event_name)
        what = f"On({name!r})"
        check_name(name, what)
        check_expression(name, what)
        if is_pattern(name):
            raise DefinitionError(f"{what}: a run is cancelled by one event; name it without '*'.")
        if self.match is None:
            raise DefinitionError(
                f"{what} needs match=, which says whose event cancels which run, as in "
                f'On({name!r}, match={{"pk": "{{{{ ctx.order_id }}}}"}}). match={{}} means any entity.'
            )
        namespace = check_namespace(self.namespace, what)
        wait = Wait(f"{EVENT_CHANNEL}{name}", event=name, match=Match.of(self.match, what), namespace=namespace)
        object.__setattr__(self, "wait", wait)


def event_of(on: On) -> str:
    """Return the name of the event, which may have expressions on the Context."""
    return str(on.wait.event)


def lookups_of(on: On) -> dict[str, Any]:
    assert on.wait.match is not None
    return dict(on.wait.match.lookups)


def _name_of(event: EventName) -> str:
    if not isinstance(event, EventDefinition):
        return event
    if is_template(event.name):
        raise DefinitionError(
            f"On({event!r}): each entity has an event of its own name. Write its name with expressions on the Context, "
            "as in 'parcel_lost:{{ ctx.parcel_id }}'."
        )
    return event.name


def check_cancel_on(given: Any, context: type[BaseModel], what: str) -> tuple[On, ...]:
    """Return the value of ``cancel_on=`` as a tuple. Raises ``DefinitionError`` if it is not a list of ``On(...)``."""
    is_list = isinstance(given, list | tuple)
    if not is_list or not all(isinstance(each, On) for each in given):
        raise DefinitionError(
            f'{what}: cancel_on={given!r} must be a list of On(...), as in cancel_on=[On("order_cancelled", match='
            '{"pk": "{{ ctx.order_id }}"})].'
        )
    for on in given:
        where = f"{what}: On({event_of(on)!r})"
        check_expression(event_of(on), where, context)
        Match.of(lookups_of(on), where, context)
    return tuple(given)
