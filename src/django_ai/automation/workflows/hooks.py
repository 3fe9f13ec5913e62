"""``@on_fail`` and ``@on_cancel``: the methods with which the path of a run begins that has failed or was cancelled."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, overload

from ..exceptions import DefinitionError
from ..queues.registry import check_attempts
from ..values.callables import check_runnable, taken_arguments
from ..values.retry import Retry
from .definitions import StepDefinition

F = TypeVar("F", bound=Callable[..., Any])

HOOK_ARGUMENTS = ("error", "run")


@overload
def on_fail(function: F, /) -> F: ...


@overload
def on_fail(
    *, retry: Retry | None = None, atomic: bool = True, timeout: timedelta | None = None
) -> Callable[[F], F]: ...


def on_fail(
    function: Any = None, *, retry: Retry | None = None, atomic: bool = True, timeout: timedelta | None = None
) -> Any:
    """Declare a method that a run enters when it has failed for good: the first step of its path to the end.

    A run has failed for good after its last attempt, with ``fail()``, and when its deadline has passed. The method is a
    step in all respects: it is retried, its database writes, Context changes and outcome are one commit, and it may
    return ``goto``, ``sleep``, a wait and so on, to undo in several steps what was done. The run ends as failed when
    the path ends: with ``complete()``, or where this method returns None. Until then it is unfinished: it keeps its
    claims, and its parent waits.

    Args:
        function: The method, where the decorator is used without brackets: ``@on_fail``. It takes ``self``, and by
            their names, if it wants them, ``error`` and ``run``. ``error`` is a string: the reason that was given to
            ``fail()``, or the traceback of the last attempt, whose last line names the exception. ``run`` is the
            ``WorkflowRun``.
        retry: When and how often to retry a failed attempt, as a ``Retry``. Default: the workflow's ``default_retry``.
            If no attempt is left, here or in a later step of the path, the run ends as failed with both errors;
            ``engine.resume`` then continues the path.
        atomic: Commit its database writes together with its progress, exactly once. Default True. Use False for slow
            external calls.
        timeout: Longest run time of one attempt, as a positive timedelta. Default ``AUTOMATION["STEP_TIMEOUT"]`` (5
            min).

    Returns:
        The method, otherwise unchanged; or a decorator that returns it.

    Raises:
        DefinitionError: At import, if an argument is invalid, or if the method is a generator or has an
            unknown parameter.

    Example:
        Give back what was booked, and tell the accountants::

            @on_fail(retry=Retry(max_attempts=20))
            def undo(self, error):
                Task.objects.create(team="accounting", text=error.splitlines()[-1])
                return goto(self.cancel_flight) if self.context.flight else complete()
    """
    return _hook("@on_fail", "__on_fail__", function, retry, atomic, timeout)


@overload
def on_cancel(function: F, /) -> F: ...


@overload
def on_cancel(
    *, retry: Retry | None = None, atomic: bool = True, timeout: timedelta | None = None
) -> Callable[[F], F]: ...


def on_cancel(
    function: Any = None, *, retry: Retry | None = None, atomic: bool = True, timeout: timedelta | None = None
) -> Any:
    """Declare a method that a run enters when it is cancelled: the first step of its path to the end.

    The path is that of ``@on_fail``, and so are the options. The cancellation withdraws what the run waits for, cancels
    its child runs, and commits in the caller's transaction; the path begins after that commit, and the run ends as
    cancelled when the path ends. A run that an event starts and that has no Context yet has nothing to undo, and is
    cancelled at once.

    Args:
        function: The method, where the decorator is used without brackets: ``@on_cancel``. It takes ``self``, and by
            their names, if it wants them, ``error`` (the reason of the cancellation, as a string) and ``run``.
        retry: As for ``@on_fail``. A run whose path has no attempt left is not undone: it ends as failed, not as
            cancelled.
        atomic: As for ``@on_fail``.
        timeout: As for ``@on_fail``.

    Returns:
        The method or a decorator, as ``@on_fail`` does.

    Raises:
        DefinitionError: As for ``@on_fail``.

    Example:
        Delete what an import has left::

            @on_cancel
            def clean_up(self, run):
                Draft.objects.filter(import_id=run.pk).delete()
    """
    return _hook("@on_cancel", "__on_cancel__", function, retry, atomic, timeout)


def _hook(hook: str, mark: str, function: Any, retry: Retry | None, atomic: bool, timeout: timedelta | None) -> Any:
    check_attempts(hook, retry, timeout)

    def decorate(method: F) -> F:
        check_runnable(method, hook)
        if not callable(method):
            raise DefinitionError(f"{hook} decorates a method of a workflow class, not {method!r}.")
        setattr(method, mark, StepDefinition(name="", retry=retry, atomic=bool(atomic), own_timeout=timeout, hook=hook))
        return method

    return decorate if function is None else decorate(function)


def hook_of(cls: type, mark: str, what: str) -> StepDefinition | None:
    """Return what ``@on_fail`` or ``@on_cancel`` declares on ``cls``, or None."""
    found = {name: hook for name in dir(cls) if (hook := getattr(getattr(cls, name), mark, None)) is not None}
    if not found:
        return None
    (name, hook), *others = found.items()
    if others:
        names = ", ".join(map(repr, found))
        raise DefinitionError(f"{what}: only one method can be {hook.hook}, and these are: {names}.")
    if len(name) > 200:
        raise DefinitionError(f"{what}: the name {name!r} of its {hook.hook} is longer than 200 characters.")
    method, is_method = getattr(cls, name), inspect.isfunction(inspect.getattr_static(cls, name))
    if hasattr(method, "__step__"):
        raise DefinitionError(f"{what}: {name!r} is {hook.hook} and a step; decorate it with one of them.")
    takes = taken_arguments(method, f"{what}: {hook.hook}", HOOK_ARGUMENTS, is_method=is_method)
    made: StepDefinition = replace(hook, name=name, takes=takes)
    return made
