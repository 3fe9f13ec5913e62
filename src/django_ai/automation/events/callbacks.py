"""``@on_event``, ``@on_event_created``, ``@on_event_cancelled``: which functions are called for which event, and when.

A callback belongs to a *milestone* of the event: its occurrence (``""``), an offset from it, its creation or its
cancellation. When a milestone fires, the same transaction inserts a ``CallbackExecution`` row; a worker performs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from ..conf import conf
from ..exceptions import DefinitionError
from ..queues.registry import declare_timeout
from ..values.callables import check_parameters, check_synchronous
from ..values.classes import is_redefinition
from ..values.clock import Offset, check_duration, check_offset, check_recheck, milestone_key
from ..values.retry import Retry
from .names import check_namespace, check_subscription
from .subscriptions import Subscription, subscriptions

__all__ = ["on_event", "on_event_cancelled", "on_event_created"]

OCCURRED = ""
CREATED = "created"
CANCELLED = "cancelled"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback(Subscription):
    """A function that is called for an event."""

    name: str
    function: Callable[..., Any]
    moment: str = OCCURRED
    retry: Retry = field(default_factory=Retry)
    atomic: bool = True
    _timeout: timedelta | None = None

    @property
    def milestone(self) -> str:
        return self.moment or milestone_key(self.offset, self.recheck)

    @property
    def timeout(self) -> timedelta:
        return self._timeout or conf().STEP_TIMEOUT


def callbacks_of(event_name: str, namespace: str) -> Sequence[Callback]:
    """Return the functions that are called for an event."""
    return subscriptions.subscribed_to(Callback, event_name, namespace)


def find_callback(event_name: str, name: str, milestone: str) -> Callback | None:
    """Return the function that an execution calls. Its namespace was checked when the execution was inserted."""
    found = subscriptions.named(Callback, event_name)
    return next((each for each in found if each.name == name and each.milestone == milestone), None)


def all_callbacks() -> list[Callback]:
    return subscriptions.all(Callback)


def _key(callback: Callback) -> tuple[str, str, str]:
    return callback.event_name, callback.name, callback.milestone


def unregister(callback: Callback) -> None:
    """Forget ``callback``: for tests that declare their own."""
    subscriptions.declare(Callback, _key(callback), ())


def register(callback: Callback) -> None:
    subscriptions.declare(Callback, _key(callback), [callback])


def on_event(
    event_name: str,
    *,
    offset: Offset | None = None,
    recheck: bool = False,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
    name: str | None = None,
    namespace: str | None = None,
) -> Callable[[F], F]:
    """Call the decorated function when an event occurs.

    The function gets the ``Event`` and nothing else. The transaction in which the event occurs also inserts one
    ``CallbackExecution`` row for each function; a worker performs it. Several functions may listen to one event, and
    one function to several.

    Args:
        event_name: Name of the event, as a string. ``*`` stands for any characters: ``"parcel_lost:*"`` means many
            events, ``"*"`` means all of them.
        offset: When to call the function, counted from the event's date: a timedelta (elapsed time) or a relativedelta
            (wall clock), negative before the date, positive after it. Default: at the event.
        recheck: Evaluate the event's condition again at an offset after the date, and skip the call if it is false by
            then. Needs ``offset``. Default False.
        retry: When and how often to retry a failed attempt, as a ``Retry``. Default: 3 attempts, with pauses of 1 s and
            2 s.
        atomic: Commit the function's database writes together with its progress, exactly once. Default True. Use False
            for slow external calls: the function then holds no transaction and may write twice.
        timeout: Longest run time of one attempt, as a positive timedelta. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5
            min).
        name: Name under which the executions are stored, a string of at most 250 characters. Default: the module and
            the qualified name of the function. Set it to the old name when you move or rename the function.
        namespace: Only events in this namespace, as a string. Default: events in any namespace.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument is invalid, or if the function is async, is a generator or cannot be
            called with one argument.

    Example:
        Ask for a review a week after the delivery::

            @on_event("order_delivered", offset=timedelta(days=7), retry=Retry(max_attempts=5))
            def ask_for_review(event):
                Review.objects.create(order=event.entity, state="asked")
    """
    return _register(event_name, "on_event", OCCURRED, offset, retry, atomic, timeout, name, namespace, recheck)


def on_event_created(
    event_name: str,
    *,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
    name: str | None = None,
    namespace: str | None = None,
) -> Callable[[F], F]:
    """Call the decorated function when an event was recorded, which may be long before it occurs.

    The transaction that records the event also inserts the ``CallbackExecution`` row; a worker performs it after the
    commit. The function gets the ``Event`` and nothing else.

    Args:
        event_name: Name of the event, as a string; ``*`` in it stands for any characters.
        retry: When and how often to retry a failed attempt, as a ``Retry``. Default: 3 attempts, with pauses of 1 s and
            2 s.
        atomic: Commit the function's database writes together with its progress, exactly once. Default True; False for
            slow external calls.
        timeout: Longest run time of one attempt, as a positive timedelta. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5
            min).
        name: Name under which the executions are stored, a string of at most 250 characters. Default: the module and
            the qualified name of the function.
        namespace: Only events in this namespace, as a string. Default: events in any namespace.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument or the function is invalid.

    Example:
        Put a date into the calendar as soon as it is known::

            @on_event_created("lease_ends")
            def note_in_calendar(event):
                CalendarEntry.objects.create(title="Lease ends", at=event.at)
    """
    return _register(event_name, "on_event_created", CREATED, None, retry, atomic, timeout, name, namespace)


def on_event_cancelled(
    event_name: str,
    *,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
    name: str | None = None,
    namespace: str | None = None,
) -> Callable[[F], F]:
    """Call the decorated function when a pending event is cancelled.

    An event is cancelled when its entity is deleted, or by ``event.cancel()``. The transaction that cancels it also
    inserts the ``CallbackExecution`` row; a worker performs it after the commit. The function gets the ``Event`` and
    nothing else; if the entity was deleted, ``event.entity`` is a snapshot of it.

    Args:
        event_name: Name of the event, as a string; ``*`` in it stands for any characters.
        retry: When and how often to retry a failed attempt, as a ``Retry``. Default: 3 attempts, with pauses of 1 s and
            2 s.
        atomic: Commit the function's database writes together with its progress, exactly once. Default True; False for
            slow external calls.
        timeout: Longest run time of one attempt, as a positive timedelta. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5
            min).
        name: Name under which the executions are stored, a string of at most 250 characters. Default: the module and
            the qualified name of the function.
        namespace: Only events in this namespace, as a string. Default: events in any namespace.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument or the function is invalid.

    Example:
        Take the date out of the calendar again::

            @on_event_cancelled("lease_ends")
            def remove_from_calendar(event):
                CalendarEntry.objects.filter(title="Lease ends", at=event.at).delete()
    """
    return _register(event_name, "on_event_cancelled", CANCELLED, None, retry, atomic, timeout, name, namespace)


def _register(
    event_name: str,
    decorator: str,
    moment: str,
    offset: Offset | None,
    retry: Retry | None,
    atomic: bool,
    timeout: timedelta | None,
    name: str | None,
    namespace: str | None,
    recheck: bool = False,
) -> Callable[[F], F]:
    what = f"@{decorator}({event_name!r})"
    event_name = check_subscription(event_name, decorator)
    check_namespace(namespace, what)
    check_offset(offset, what)
    check_recheck(recheck, offset, what)
    if retry is not None and not isinstance(retry, Retry):
        raise DefinitionError(f"{what}: retry={retry!r} must be a Retry(...).")
    if timeout is not None:
        check_duration(timeout, f"{what}: timeout")
        declare_timeout(timeout)

    def decorate(function: F) -> F:
        if not callable(function):
            raise DefinitionError(f"{what} decorates a function, not {function!r}.")
        check_synchronous(function, what)
        check_parameters(function, what, "event")
        if not name and not hasattr(function, "__qualname__"):
            raise DefinitionError(f"{what}: {function!r} has no __qualname__ to store executions under; give name=.")
        callback = Callback(
            name=name or f"{function.__module__}.{function.__qualname__}",
            event_name=event_name,
            function=function,
            offset=offset or None,
            moment=moment,
            retry=retry or Retry(),
            atomic=atomic,
            namespace=namespace,
            recheck=recheck,
            _timeout=timeout,
        )
        if len(callback.name) > 250:
            raise DefinitionError(f"{what}: the name {callback.name!r} is longer than 250 characters; give name=.")
        for previous in subscriptions.declared_by(Callback, _key(callback)):
            if not is_redefinition(previous.function, function):
                raise DefinitionError(
                    f"{what}: two functions are called {callback.name!r} ({previous.function!r} and {function!r}). "
                    "Give one of them another name=."
                )
        register(callback)
        return function

    return decorate
