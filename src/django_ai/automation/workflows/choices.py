"""``wait_any`` and ``wait_all``: a step waits for several things at once, each a named branch."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ..exceptions import DefinitionError
from ..values.json_text import storable
from .outcomes import Branch, Choice, Sleep, Subflow, Target, Wait, check_timeout, target_name

MAX_BRANCHES = 100
"""Branches of one choice: each is a row in the commit of the step."""
MAX_BRANCH_NAME = 50


def wait_any(
    branches: Mapping[str, Branch] | None = None,
    /,
    *,
    then: Target | None = None,
    timeout: timedelta | None = None,
    on_timeout: Target | None = None,
    **named: Branch,
) -> Choice:
    """Pause the run until the first of several branches is over.

    The commit of the step registers all branches. Whatever commits first wins, exactly once; the same transaction
    withdraws the other branches: a signal or an event that comes later is kept for the next wait of the run, and the
    child runs of other branches are cancelled. The step that follows gets the name of the branch as
    ``get_wake().branch``, with the ``reason`` and the ``payload`` of a single wait. The payload is merged into the
    Context as there.

    Args:
        branches: Branches as a dict, by their names. Default: none.
        then: The step to enter afterwards, as a method or its name, where the branch names none of its own. Default:
            this step again.
        timeout: Longest time to wait for any branch, as a timedelta of zero or more. ``get_wake()`` then has the reason
            ``"timeout"`` and no branch. Default: no limit.
        on_timeout: The step to enter after this timeout, as a method or its name. Default: this step again. Needs
            ``timeout``.
        **named: Branches as keywords. There are 1 to 100 branches in all, each a ``wait(...)``,
            ``wait_for_event(...)``, ``sleep(...)`` or ``run_subflow(...)``; a name has at most 50 characters. A branch
            may have its own ``then=``; where it has a ``timeout=``, it is over, and wins, when that has passed.

    Returns:
        The outcome, to be returned by the step.

    Raises:
        DefinitionError: If an argument is invalid, or if a branch is itself a choice.

    Example:
        Ship a paid order; forget one that is called off, or that is not paid within two weeks::

            @step()
            def await_payment(self):
                return wait_any(
                    paid=wait_for_event("order_paid", then=self.ship),
                    called_off=wait("order_called_off"),
                    later=sleep(timedelta(days=14)),
                    then=self.forget,
                )
    """
    return _choice("wait_any", branches, named, False, then, timeout, on_timeout)


def wait_all(
    branches: Mapping[str, Branch] | None = None,
    /,
    *,
    then: Target | None = None,
    timeout: timedelta | None = None,
    on_timeout: Target | None = None,
    **named: Branch,
) -> Choice:
    """Pause the run until all of several branches are over, in any order.

    The commit of the step registers all branches. A signal or an event ends one branch, the first in this order that it
    fits, and is consumed by it: to wait for two approvals, name two branches. The step that follows gets
    ``get_wake().branches``, in which each branch has its ``reason`` and ``payload`` under its name; the payloads are
    merged into the Context in the order in which they arrived. Without any branch the run continues at once.

    Args:
        branches: Branches as a dict, by their names. Default: none.
        then: The step to enter afterwards, as a method or its name, where ``get_wake().reason`` is ``"all"``. Default:
            this step again.
        timeout: Longest time to wait for all branches, as a timedelta of zero or more. When it has passed, the other
            branches are withdrawn, their child runs are cancelled, and ``get_wake()`` has the reason ``"timeout"`` and
            the branches that are over. Default: no limit.
        on_timeout: The step to enter after this timeout, as a method or its name. Default: this step again. Needs
            ``timeout``.
        **named: Branches as keywords. There are at most 100 branches in all, each a ``wait(...)``,
            ``wait_for_event(...)``, ``sleep(...)`` or ``run_subflow(...)``; a name has at most 50 characters. A branch
            with a ``timeout=`` is over, with the reason ``"timeout"``, when that has passed. It names no step itself.

    Returns:
        The outcome, to be returned by the step.

    Raises:
        DefinitionError: If an argument is invalid, or if a branch is itself a choice.

    Example:
        Convert all files of an upload at the same time, in child runs::

            @step()
            def convert(self):
                files = {f"file {pk}": run_subflow("convert_file", file_id=pk) for pk in self.context.files}
                return wait_all(files, then=self.send)
    """
    return _choice("wait_all", branches, named, True, then, timeout, on_timeout)


def _choice(
    what: str,
    given: Mapping[str, Any] | None,
    named: Mapping[str, Any],
    is_all: bool,
    then: Target | None,
    timeout: timedelta | None,
    on_timeout: Target | None,
) -> Choice:
    if given is not None and not isinstance(given, Mapping):
        raise DefinitionError(
            f'{what}({given!r:.200}): give each branch a name, as in {what}(paid=wait_for_event("order_paid")).'
        )
    twice = [name for name in named if name in (given or {})]
    if twice:
        raise DefinitionError(f"{what}(): two branches have the name {twice[0]!r}. Give each its own name.")
    branches = {**(given or {}), **named}
    if not branches and not is_all:
        raise DefinitionError('wait_any() needs a branch, as in wait_any(paid=wait_for_event("order_paid")).')
    if len(branches) > MAX_BRANCHES:
        raise DefinitionError(
            f"{what}() has {len(branches)} branches, and {MAX_BRANCHES} are allowed. Wait for them in several steps, "
            "or in child runs that wait for a part each."
        )
    for name, branch in branches.items():
        _check_branch(what, name, branch)
        if is_all:
            _check_names_no_step(name, branch)
    check_timeout(timeout, on_timeout, f"{what}()")
    return Choice(
        branches,
        is_all,
        timeout,
        None if on_timeout is None else target_name(on_timeout, f"{what}(on_timeout=...)"),
        None if then is None else target_name(then, f"{what}(then=...)"),
    )


def _check_branch(what: str, name: Any, branch: Any) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_BRANCH_NAME or storable(name) != name:
        raise DefinitionError(
            f"{what}(): {name!r:.80} cannot be the name of a branch; it has 1 to {MAX_BRANCH_NAME} characters, without "
            "NUL or surrogates."
        )
    if isinstance(branch, Choice):
        inner = "wait_all" if branch.is_all else "wait_any"
        raise DefinitionError(
            f"{what}({name}={inner}(...)): a choice cannot be a branch of another one. Wait in two steps, or let a "
            f"child run wait for the inner one: {what}({name}=run_subflow(...))."
        )
    if not isinstance(branch, Wait | Sleep | Subflow):
        raise DefinitionError(
            f"{what}({name}={branch!r:.200}): a branch is wait(...), wait_for_event(...), sleep(...) or "
            "run_subflow(...)."
        )


def _check_names_no_step(name: str, branch: Branch) -> None:
    for option in ("then", "on_timeout"):
        if getattr(branch, option, None) is not None:
            raise DefinitionError(
                f"wait_all({name}=...): the run continues only once, so {option}= belongs to wait_all itself. Write "
                f"wait_all(..., {option}=...)."
            )
