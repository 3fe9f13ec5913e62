"""``wait_any`` and ``wait_all``: frozen values, which refuse wrong branches when they are made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from django_ai.automation.exceptions import DefinitionError
from django_ai.automation.workflows.choices import MAX_BRANCH_NAME, MAX_BRANCHES
from django_ai.automation.workflows.core import (
    complete,
    goto,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
)

HOUR = timedelta(hours=1)
PAID = wait_for_event("order_paid")
NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)


class Flow:
    @step()
    def end(self):
        return complete()

    def plain(self):
        pass


def test_branches_are_kept_by_name_in_their_order():
    choice = wait_any(paid=PAID, off=wait("off"), later=sleep(HOUR), child=run_subflow("child"), then=Flow.end)
    assert list(choice.branches.items()) == [
        ("paid", PAID),
        ("off", wait("off")),
        ("later", sleep(HOUR)),
        ("child", run_subflow("child")),
    ]
    assert (choice.is_all, choice.then, choice.timeout, choice.on_timeout) == (False, "end", None, None)


def test_branches_may_be_given_as_a_dict_with_any_names():
    choice = wait_all({"then": wait("a"), "order 5": wait("b")}, more=wait("c"), timeout=HOUR, on_timeout="end")
    assert list(choice.branches) == ["then", "order 5", "more"]
    assert (choice.is_all, choice.then, choice.timeout, choice.on_timeout) == (True, None, HOUR, "end")


def test_a_later_change_of_the_dict_changes_nothing():
    branches = {"a": wait("a")}
    choice = wait_all(branches)
    branches["b"] = wait("b")
    assert list(choice.branches) == ["a"]


def test_all_of_nothing_is_a_choice_and_the_first_of_nothing_is_not():
    assert dict(wait_all().branches) == dict(wait_all({}).branches) == {}
    with pytest.raises(DefinitionError, match=r"wait_any\(\) needs a branch"):
        wait_any()


@pytest.mark.parametrize("make", [wait_any, wait_all])
@pytest.mark.parametrize(
    ("branches", "said"),
    [
        ({"inner": wait_any(a=wait("a"))}, r"inner=wait_any\(...\)\): a choice cannot be a branch .*run_subflow"),
        ({"inner": wait_all(a=wait("a"))}, r"inner=wait_all\(...\)\): a choice cannot be a branch"),
        ({"next": goto("end")}, r"next=Goto\(.*: a branch is wait\(...\)"),
        ({"end": complete()}, "a branch is wait"),
        ({"name": "order_paid"}, "name='order_paid'"),
        ({"wait": wait}, "a branch is wait"),
        ({"": wait("a")}, "'' cannot be the name of a branch"),
        ({"x" * (MAX_BRANCH_NAME + 1): wait("a")}, "cannot be the name of a branch; it has 1 to 50 characters"),
        ({"nul\0": wait("a")}, "without NUL"),
        ({5: wait("a")}, "5 cannot be the name"),
        ([wait("a")], r"give each branch a name, as in wait_a.*\(paid="),
        (wait("a"), "give each branch a name"),
        ({f"b{number}": wait("a") for number in range(MAX_BRANCHES + 1)}, "101 branches, and 100 are allowed"),
    ],
)
def test_wrong_branches_are_refused(make, branches, said):
    with pytest.raises(DefinitionError, match=said):
        make(branches)


@pytest.mark.parametrize("make", [wait_any, wait_all])
def test_wrong_options_are_refused(make):
    with pytest.raises(DefinitionError, match="two branches have the name 'a'"):
        make({"a": wait("a")}, a=wait("b"))
    with pytest.raises(DefinitionError, match="timeout=60 must be a timedelta"):
        make(a=wait("a"), timeout=60)
    with pytest.raises(DefinitionError, match="on_timeout= needs timeout="):
        make(a=wait("a"), on_timeout="end")
    with pytest.raises(DefinitionError, match="'plain' is not a step"):
        make(a=wait("a"), then=Flow().plain)
    with pytest.raises(DefinitionError, match="'plain' is not a step"):
        make(a=wait("a"), timeout=HOUR, on_timeout=Flow().plain)


@pytest.mark.parametrize(
    ("branch", "option"),
    [
        (wait("a", then="end"), "then"),
        (wait("a", HOUR, on_timeout="end"), "on_timeout"),
        (sleep(HOUR, then="end"), "then"),
        (run_subflow("child", then="end"), "then"),
    ],
)
def test_a_branch_of_all_names_no_step_and_one_of_any_may(branch, option):
    with pytest.raises(DefinitionError, match=rf"a=...\): .*{option}= belongs to wait_all itself"):
        wait_all(a=branch)
    assert wait_any(a=branch).targets() == ["end"]


def test_all_steps_that_are_named_are_targets():
    choice = wait_any(
        a=wait("a", HOUR, "late", then="a"), b=sleep(until=NOON, then="b"), c=run_subflow("child", then="c"),
        then="d", timeout=HOUR, on_timeout="e",
    )  # fmt: skip
    assert sorted(choice.targets()) == ["a", "b", "c", "d", "e", "late"]
