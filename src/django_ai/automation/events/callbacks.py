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
from ..queues.lanes import Priority, check_priority, check_queue, check_window_priority, declare
from ..queues.registry import check_attempts
from ..values.callables import check_parameters, check_runnable
from ..values.classes import is_redefinition
from ..values.clock import Offset, check_offset, check_recheck
from ..values.limits import Concurrency, DeclaredLimit, RateLimit, Singleton, Throttle, declared_limits
from ..values.retry import Retry
from ..values.windows import Batch, Debounce, Window, declared_window
from .definitions import EventName, name_of
from .event_keys import check_event_key
from .limit_keys import check_event_keys
from .names import check_namespace, check_subscription
from .subscriptions import Subscription, subscriptions

__all__ = ["on_event", "on_event_cancelled", "on_event_created"]

OCCURRED = ""
CREATED = "created"
CANCELLED = "cancelled"
CALLBACK = "callback"
"""The kind of windows and limits of callbacks."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback(Subscription):
    """A function that is called for an event."""

    name: str
    function: Callable[..., Any]
    retry: Retry = field(default_factory=Retry)
    atomic: bool = True
    queue: str = ""
    priority: Priority = 0
    limits: tuple[DeclaredLimit, ...] = ()
    _timeout: timedelta | None = None

    @property
    def window_target(self) -> tuple[str, str]:
        return CALLBACK, self.name

    @property
    def subscriber(self) -> tuple[str, str]:
        return CALLBACK, self.name

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
    declare("callbacks", callback.queue, callback.priority)
    subscriptions.declare(Callback, _key(callback), [callback])


def on_event(
    event_name: EventName,
    *,
    offset: Offset | None = None,
    recheck: bool = False,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
    name: str | None = None,
    namespace: str | None = None,
    debounce: Debounce | None = None,
    batch: Batch | None = None,
    queue: str | None = None,
    priority: Priority = 0,
    concurrency: Concurrency | Sequence[Concurrency] | None = None,
    throttle: Throttle | None = None,
    rate_limit: RateLimit | None = None,
    singleton: Singleton | None = None,
) -> Callable[[F], F]:
    """Call the decorated function when an event occurs.

    The function gets the ``Event`` and nothing else. The transaction in which the event occurs also inserts one
    ``CallbackExecution`` row for each function; a worker performs it. Several functions may listen to one event, and
    one function to several.

    Args:
        event_name: Name of the event, as a string, or its ``EventDefinition``, which stands for its name. ``*`` in a
            name stands for any characters: ``"parcel_lost:*"`` means many events, ``"*"`` means all of them.
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
        debounce: Collect events until no more come, as a ``Debounce``, and call the function once with a list of all of
            them, in the order in which they occurred. Not together with ``offset`` or ``batch``. Default: one call for
            each event.
        batch: Collect events until there are enough, as a ``Batch``, and call the function with a list of them.
            Default: one call for each event.
        queue: Name of the queue of the executions: workers may be started for some queues only. Default ``"default"``.
        priority: A whole number from -100 to 100, or a function of the event that returns one (not with ``debounce`` or
            ``batch``). Of the rows that are due the higher come first; each point counts as 30 s of waiting. Default 0.
        concurrency: How many calls may run at the same time: a ``Concurrency``, or a list of them, one with a key and
            one for all. Others wait for their turn. Default: any number.
        throttle: How many calls may start per unit of time, as a ``Throttle``; others start later. Default: any number.
        rate_limit: How many calls may start per unit of time, as a ``RateLimit``; others are cancelled with the reason.
            Default: any number.
        singleton: At most one unfinished call, as a ``Singleton``. Default: any number.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument is invalid, or if the function is a generator or cannot be
            called with one argument.

    Example:
        Ask for a review a week after the delivery::

            @on_event("order_delivered", offset=timedelta(days=7), retry=Retry(max_attempts=5))
            def ask_for_review(event):
                Review.objects.create(order=event.entity, state="asked")
    """
    what = f"@on_event({name_of(event_name)!r})"
    window = declared_window(what, debounce, batch)
    if window is not None and offset:
        raise DefinitionError(f"{what}: an offset cannot be combined with debounce= or batch=; remove one of them.")
    if window is not None:
        check_event_key(window.key, what)
        check_window_priority(priority, what)
    lane = queue, priority
    limits = declared_limits(
        what, concurrency=concurrency, throttle=throttle, rate_limit=rate_limit, singleton=singleton
    )
    check_event_keys(limits, what)
    return _register(
        event_name, "on_event", OCCURRED, offset, retry, atomic, timeout, name, namespace, lane, recheck, window, limits
    )


def on_event_created(
    event_name: EventName,
    *,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
    name: str | None = None,
    namespace: str | None = None,
    queue: str | None = None,
    priority: Priority = 0,
) -> Callable[[F], F]:
    """Call the decorated function when an event was recorded, which may be long before it occurs.

    An event is recorded by the first save of its entity, whatever its condition says and whether or not it has a date:
    the condition may be false, and ``event.at`` may be None. A date that is set or moved later calls nothing. The
    transaction that records the event also inserts the ``CallbackExecution`` row; a worker performs it after the
    commit. The function gets the ``Event`` and nothing else.

    Args:
        event_name: Name of the event, as a string, or its ``EventDefinition``; ``*`` in a name stands for any
            characters.
        retry: When and how often to retry a failed attempt, as a ``Retry``. Default: 3 attempts, with pauses of 1 s and
            2 s.
        atomic: Commit the function's database writes together with its progress, exactly once. Default True; False for
            slow external calls.
        timeout: Longest run time of one attempt, as a positive timedelta. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5
            min).
        name: Name under which the executions are stored, a string of at most 250 characters. Default: the module and
            the qualified name of the function.
        namespace: Only events in this namespace, as a string. Default: events in any namespace.
        queue: Name of the queue of the executions: workers may be started for some queues only. Default ``"default"``.
        priority: A whole number from -100 to 100, or a function of the event that returns one. Of the rows that are due
            the higher come first; each point counts as 30 s of waiting. Default 0.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        DefinitionError: At import, if an argument or the function is invalid.

    Example:
        Put the end of a lease, which each lease has, into the calendar as soon as the lease is made::

            @on_event_created("lease_ends")
            def note_in_calendar(event):
                CalendarEntry.objects.create(title="Lease ends", at=event.at)
    """
    lane = queue, priority
    return _register(event_name, "on_event_created", CREATED, None, retry, atomic, timeout, name, namespace, lane)


def on_event_cancelled(
    event_name: EventName,
    *,
    retry: Retry | None = None,
    atomic: bool = True,
    timeout: timedelta | None = None,
    name: str | None = None,
    namespace: str | None = None,
    queue: str | None = None,
    priority: Priority = 0,
) -> Callable[[F], F]:
    """Call the decorated function when a pending event is cancelled.

    An event is cancelled when its entity is deleted, or by ``event.cancel()``. The transaction that cancels it also
    inserts the ``CallbackExecution`` row; a worker performs it after the commit. The function gets the ``Event`` and
    nothing else; if the entity was deleted, ``event.entity`` is a snapshot of it.

    Args:
        event_name: Name of the event, as a string, or its ``EventDefinition``; ``*`` in a name stands for any
            characters.
        retry: When and how often to retry a failed attempt, as a ``Retry``. Default: 3 attempts, with pauses of 1 s and
            2 s.
        atomic: Commit the function's database writes together with its progress, exactly once. Default True; False for
            slow external calls.
        timeout: Longest run time of one attempt, as a positive timedelta. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5
            min).
        name: Name under which the executions are stored, a string of at most 250 characters. Default: the module and
            the qualified name of the function.
        namespace: Only events in this namespace, as a string. Default: events in any namespace.
        queue: Name of the queue of the executions: workers may be started for some queues only. Default ``"default"``.
        priority: A whole number from -100 to 100, or a function of the event that returns one. Of the rows that are due
            the higher come first; each point counts as 30 s of waiting. Default 0.

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
    lane = queue, priority
    return _register(event_name, "on_event_cancelled", CANCELLED, None, retry, atomic, timeout, name, namespace, lane)


def _register(
    event_name: EventName,
    decorator: str,
    fixed_milestone: str,
    offset: Offset | None,
    retry: Retry | None,
    atomic: bool,
    timeout: timedelta | None,
    name: str | None,
    namespace: str | None,
    lane: tuple[str | None, Priority],
    recheck: bool = False,
    window: Window | None = None,
    limits: tuple[DeclaredLimit, ...] = (),
) -> Callable[[F], F]:
    what = f"@{decorator}({name_of(event_name)!r})"
    pattern = check_subscription(name_of(event_name), decorator)
    queue, priority = check_queue(lane[0], what), check_priority(lane[1], what, "event")
    check_namespace(namespace, what)
    check_offset(offset, what)
    check_recheck(recheck, offset, what)
    check_attempts(what, retry, timeout)

    def decorate(function: F) -> F:
        if not callable(function):
            raise DefinitionError(f"{what} decorates a function, not {function!r}.")
        check_runnable(function, what)
        check_parameters(function, what, "event" if window is None else "events")
        if not name and not hasattr(function, "__qualname__"):
            raise DefinitionError(f"{what}: {function!r} has no __qualname__ to store executions under; give name=.")
        callback = Callback(
            name=name or f"{function.__module__}.{function.__qualname__}",
            event_name=pattern,
            function=function,
            offset=offset or None,
            fixed_milestone=fixed_milestone,
            retry=retry or Retry(),
            atomic=atomic,
            namespace=namespace,
            recheck=recheck,
            window=window,
            queue=queue,
            priority=priority,
            limits=limits,
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
