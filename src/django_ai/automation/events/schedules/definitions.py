"""What ``@schedule`` declares, and the register of it.

Each time of a schedule is an event without a model, ``schedule:TARGET``. The target, a function or a workflow,
subscribes to it like to any other event: retries, limits, history and the admin are those of callbacks and runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta, tzinfo
from difflib import get_close_matches
from typing import Any, Literal, Protocol, TypeVar, get_args

from ...exceptions import DefinitionError
from ...queues.registry import check_attempts
from ...values.callables import check_parameters
from ...values.classes import is_redefinition
from ...values.json_text import encode
from ...values.retry import Retry
from ...values.timetable import MAX_CATCH_UP, Timetable, timetable
from ..callbacks import on_event
from ..free_events import FreeEvent

F = TypeVar("F", bound=Callable[..., Any])

Overlap = Literal["allow", "skip", "queue"]

PREFIX = "schedule:"
SCHEDULED = FreeEvent(f"{PREFIX}*")
"""The events of all schedules."""
MAX_TARGET = 200 - len(PREFIX)


class Schedulable(Protocol):
    """What a class offers in its attribute ``__schedulable__`` if a schedule can start it."""

    @property
    def name(self) -> str:
        """Its name, under which the schedule starts it."""

    def start_on(self, event_name: str) -> None:
        """Start with each event of this name from now on."""

    def problem_with(self, arguments: Iterable[str]) -> str:
        """Return why it cannot start with the ``arguments`` of a schedule, which have these names. Empty: it can."""


@dataclass(frozen=True, slots=True)
class ScheduleDefinition:
    """One schedule that code declares."""

    name: str
    target: str
    timetable: Timetable
    catch_up: int | timedelta = 1
    overlap: Overlap = "allow"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    owner: Any = None


_declared: dict[str, ScheduleDefinition] = {}
_targets: set[str] = set()
_target_sources: list[Callable[[], Iterable[Schedulable]]] = []


def event_name_of(target: str) -> str:
    return f"{PREFIX}{target}"


def find_schedule(name: str) -> ScheduleDefinition | None:
    """Return the schedule that this code declares under ``name``, or None."""
    return _declared.get(name)


def all_schedules() -> list[ScheduleDefinition]:
    return list(_declared.values())


def unregister(definition: ScheduleDefinition) -> None:
    """Forget ``definition``: for tests that declare their own."""
    _declared.pop(definition.name, None)


def register(definition: ScheduleDefinition) -> None:
    _declared[definition.name] = definition


def register_targets(source: Callable[[], Iterable[Schedulable]]) -> None:
    """Let staff schedule what ``source()`` returns, too."""
    _target_sources.append(source)


def targets() -> list[str]:
    """Return the names of everything that a schedule can start."""
    return sorted({*_targets, *(each.name for source in _target_sources for each in source())})


def problem_with_arguments(target: str, arguments: Iterable[str]) -> str:
    """Return why the schedule of a target cannot have arguments of these names. Empty: it can."""
    found = (each for source in _target_sources for each in source() if each.name == target)
    return next((each.problem_with(arguments) for each in found), "")


def schedule(
    when: str | timedelta,
    *,
    timezone: str | tzinfo | None = None,
    catch_up: int | timedelta = 1,
    overlap: Overlap = "allow",
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
) -> Callable[[F], F]:
    """Call a function, or start a workflow, at the times of a cron expression or at an interval.

    Each schedule is a row (``Schedule``), which workers insert when they start; staff can pause it and fire it in the
    admin. At each time its row emits an event in one transaction with its next time. The function is called for this
    event like one of ``@on_event``; a workflow starts like an event workflow, with the ``arguments``.

    Args:
        when: A cron expression of five fields, as a string: ``"0 2 * * *"`` is every night at two. Or an interval as a
            timedelta of a second or more, which counts elapsed time.
        timezone: The time zone of the cron expression, as a name or a tzinfo. Default: ``TIME_ZONE``.
        catch_up: How many missed times are made up for after an outage, the latest ones: a whole number from 0 to 1000.
            Or a timedelta: the times that are not older than that. Default 1.
        overlap: What happens when the work of the last time has not ended: ``"allow"`` starts another, ``"skip"``
            leaves the time out, and ``"queue"`` starts it when the other has ended. Default ``"allow"``.
        name: Name of the schedule, a string of at most 191 characters. Default: the name of the workflow, or the module
            and the qualified name of the function. Needed for a second schedule of the same target.
        arguments: A dict of JSON values: the payload of the event, and the fields of the workflow's Context where it
            has no ``create_context``. Default: none.
        retry: When and how often to retry a failed call of a function, as a ``Retry``. Default: 3 attempts. A workflow
            declares its own.
        atomic: Commit the function's database writes together with its progress. Default True.
        timeout: Longest run time of one call of a function. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5 min).

    Returns:
        A decorator that registers the function or class and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument is invalid, if the ``arguments`` are not those that the Context of
            the workflow needs, if cron expressions are used without the extra ``schedules``, or if another schedule has
            the name.

    Example:
        Close the day at two in the morning in Berlin, and look for mail every five minutes::

            @schedule("0 2 * * *", timezone="Europe/Berlin")
            @workflow("night_audit")
            class NightAudit:
                ...

            @schedule(timedelta(minutes=5), overlap="skip")
            def fetch_mail():
                mailbox.fetch()
    """
    what = f"@schedule({when!r})"
    times = timetable(when, timezone, what)
    _check_catch_up(catch_up, what)
    if overlap not in get_args(Overlap):
        near = get_close_matches(str(overlap), get_args(Overlap), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Write one of {', '.join(map(repr, get_args(Overlap)))}."
        raise DefinitionError(f"{what}: overlap={overlap!r} does not exist. {hint}")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise DefinitionError(f"{what}: arguments={arguments!r} must be a dict of JSON values.")
    given = dict(arguments or {})
    check_attempts(what, retry, timeout)
    encode(given, f"{what}: arguments")

    def decorate(decorated: F) -> F:
        if inspect.isclass(decorated):
            schedulable: Schedulable | None = getattr(decorated, "__schedulable__", None)
            if schedulable is None:
                raise DefinitionError(
                    f"{what}: {decorated.__qualname__} is no workflow. Put @schedule above @workflow."
                )
            if retry is not None or timeout is not None or not atomic:
                raise DefinitionError(
                    f"{what}: retry=, atomic= and timeout= are for functions; a step declares its own."
                )
            if problem := schedulable.problem_with(given):
                raise DefinitionError(f"{what}: arguments={given!r}: {problem}")
            target = schedulable.name
            schedulable.start_on(event_name_of(target))
        else:
            target = f"{decorated.__module__}.{decorated.__qualname__}"
            call = _with_event(decorated, what)
            on_event(event_name_of(target), retry=retry, atomic=atomic, timeout=timeout, name=target)(call)
            _targets.add(target)
        definition = ScheduleDefinition(name or target, target, times, catch_up, overlap, given, decorated)
        for title in (definition.name, target):
            if len(title) > MAX_TARGET:
                raise DefinitionError(f"{what}: the name {title!r} is longer than {MAX_TARGET} characters; give name=.")
        previous = find_schedule(definition.name)
        if previous is not None and not is_redefinition(previous.owner, decorated):
            raise DefinitionError(f"{what}: two schedules are called {definition.name!r}. Give one of them name=.")
        register(definition)
        return decorated

    return decorate


def _with_event(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return a function that takes the event, for one that takes it or nothing."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        check_parameters(function, what, "event")
        return function

    @functools.wraps(function)
    def called(event: Any) -> Any:
        return function()

    del called.__wrapped__  # its own signature counts
    return called


def _check_catch_up(catch_up: Any, what: str) -> None:
    is_count = type(catch_up) is int and 0 <= catch_up <= MAX_CATCH_UP
    if not is_count and not (isinstance(catch_up, timedelta) and catch_up >= timedelta(0)):
        raise DefinitionError(
            f"{what}: catch_up={catch_up!r} must be a whole number from 0 to {MAX_CATCH_UP}, or a timedelta."
        )
