"""The lower bound up to which all arrivals are visible, with keys that commit in another order than allocated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from django_ai.automation.queues import committed_prefix, positions
from django_ai.automation.queues.arrival_pruning import prune_arrivals
from django_ai.automation.queues.models import Arrival
from django_ai.automation.queues.periodic_tasks import TimeSlice
from django_ai.automation.queues.positions import allocate, bound_at, lower_bound
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.marks import not_on, only_on
from tests.support.race import OtherThread

pytestmark = pytest.mark.django_db(transaction=True)

several_writers = not_on("sqlite", reason="SQLite has one writer")


@pytest.fixture(autouse=True)
def new_process() -> None:
    positions._prefixes.clear()


class Undone(Exception):
    pass


@contextmanager
def in_flight(commit: bool = True) -> Iterator[tuple[int, Callable[[], None]]]:
    """Allocate a position in another, open transaction; yield it, and a function that ends the transaction."""
    taken: list[int] = []
    has_taken, go_on = threading.Event(), threading.Event()

    def work() -> None:
        try:
            with transaction.atomic():
                taken.extend(allocate(1))
                has_taken.set()
                assert go_on.wait(30)
                if not commit:
                    raise Undone
        except Undone:
            pass

    other = OtherThread(work)
    assert has_taken.wait(20)

    def end() -> None:
        go_on.set()
        other.join()

    try:
        yield taken[0], end
    finally:
        end()


def arrive(count: int = 1) -> int:
    with transaction.atomic():
        return allocate(count)[-1]


@several_writers
def test_a_lower_key_that_commits_later_is_above_the_bound():
    before = arrive(3)
    assert lower_bound() == before
    with in_flight() as (low, end):
        high = arrive()
        assert before < low < high
        assert lower_bound() == low - 1
        assert lower_bound() == low - 1
        with transaction.atomic():
            assert lower_bound() == low - 1
        end()
    assert lower_bound() == high


@several_writers
def test_a_bound_that_is_read_before_any_arrival_has_committed():
    with in_flight() as (low, end):
        assert lower_bound() < low
        arrive()
        assert lower_bound() < low
        end()
    assert lower_bound() > low


@several_writers
def test_a_key_that_was_rolled_back_holds_nobody_back():
    before = arrive()
    assert lower_bound() == before
    with in_flight(commit=False) as (low, end):
        high = arrive()
        assert before < low < high
        assert lower_bound() == before
        end()
    assert lower_bound() == high


@several_writers
def test_a_rolled_back_key_is_passed_over_while_others_go_on_writing():
    before = arrive()
    assert lower_bound() == before
    with in_flight(commit=False) as (low, end):
        arrive()
        assert lower_bound() == low - 1
        end()
        with in_flight() as (later, end_later):
            arrive()
            assert low - 1 < lower_bound() < later
            end_later()


@several_writers
def test_who_has_begun_after_a_rolled_back_key_does_not_hold_a_new_process_back(monkeypatch):
    """Otherwise a run created by a new process would receive events from a minute before its creation."""
    monkeypatch.setattr(committed_prefix, "MAX_CLOCK_STEP_SECONDS", 0)
    arrive()
    with in_flight(commit=False):
        pass
    last = arrive()
    with in_flight() as (flying, _):
        high = arrive()
        assert last < flying < high
        assert lower_bound() == last
    assert lower_bound() == high


@only_on("postgresql", reason="on MariaDB a lock wait times out in less than a minute")
def test_a_key_of_a_transaction_that_is_open_for_long_is_above_the_bound_of_a_new_process(monkeypatch):
    monkeypatch.setattr(committed_prefix, "SETTLED_SECONDS", 0)
    arrive(2)
    with in_flight() as (low, end):
        high = arrive(2)
        positions._prefixes.clear()
        assert lower_bound() < low < high
        end()
    positions._prefixes.clear()
    assert lower_bound() == high


def test_what_this_transaction_has_made_is_not_counted_on_by_others():
    arrive()
    committed = lower_bound()
    try:
        with transaction.atomic():
            own = arrive(2)
            assert lower_bound() == own
            if connection.vendor != "sqlite":
                assert OtherThread(lower_bound).join() == committed
            raise Undone
    except Undone:
        pass
    assert lower_bound() == committed
    assert arrive() > committed
    assert lower_bound() > committed


def test_a_process_that_looks_while_it_writes_knows_the_bound_after_its_commit(django_assert_num_queries):
    for _ in range(2):
        with transaction.atomic():
            own = arrive(2)
            assert lower_bound() == own
    if connection.vendor != "sqlite":
        assert positions._known(connection).end == own  # type: ignore[union-attr]
    with django_assert_num_queries(1):
        assert lower_bound() == own


def test_after_a_flush_the_bound_begins_anew():
    arrive(5)
    assert lower_bound() > 0
    Arrival.objects.all().delete()
    assert lower_bound() == 0
    assert lower_bound() < arrive()


@pytest.mark.parametrize("count", [1, 2500])
def test_many_arrivals_are_numbered_upwards(count):
    with transaction.atomic():
        taken = allocate(count)
    assert taken == sorted(set(taken))
    assert len(taken) == count
    assert lower_bound() == taken[-1]


@several_writers
def test_a_bound_in_the_middle_of_many():
    arrive(1500)
    lower_bound()
    with in_flight() as (low, end):
        arrive(1500)
        # MariaDB reserves keys for a statement of many rows, and does not use all of them.
        assert low - 1100 < lower_bound() < low
        end()
    assert lower_bound() == Arrival.objects.order_by("pk").last().pk


def test_a_known_bound_costs_one_query(django_assert_num_queries):
    arrive(3)
    lower_bound()
    arrive(3)
    with django_assert_num_queries(1):
        lower_bound()


@only_on("postgresql", reason="Other databases compute no bound in an INSERT")
def test_an_insert_computes_the_bound_unless_a_key_is_missing():
    def inserted() -> tuple[bool, int]:
        row = WorkflowRun(name="x", created_at=timezone.now())
        return positions.insert_bounded(row), row.position

    arrive(2)
    assert inserted() == (False, 0)  # this process knows nothing yet
    lower_bound()
    last = arrive()
    assert inserted() == (True, last)
    with in_flight() as (low, end):
        arrive()
        assert inserted() == (False, 0)
        end()
    assert inserted() == (True, low + 1)
    with transaction.atomic():
        own = arrive()
        assert inserted() == (True, own)
        assert OtherThread(lower_bound).join() == low + 1  # nobody counts on what is not committed
    row = WorkflowRun(name="x", created_at=timezone.now())
    assert positions.insert_bounded(row, at_most=own - 1)
    assert row.position == own - 1
    Arrival.objects.all().delete()
    assert inserted() == (False, 0)


def test_old_arrivals_go_and_the_newest_stays():
    low, high = arrive(), arrive(3)
    assert prune_arrivals(TimeSlice(timezone.now())).done == 0
    Arrival.objects.update(at=timezone.now() - timedelta(days=1000))
    assert prune_arrivals(TimeSlice(timezone.now())).done == 3
    assert low < high
    assert list(Arrival.objects.values_list("pk", flat=True)) == [high]
    assert lower_bound() == high


@pytest.mark.parametrize("minutes", [-1, 1])
def test_a_bound_for_a_moment_is_behind_what_came_after_it(minutes):
    before, now = arrive(), timezone.now()
    assert bound_at(now + timedelta(minutes=minutes), now) == (before if minutes > 0 else 0)


@pytest.mark.parametrize("years", [-5, 5])
def test_a_bound_in_a_test_that_travels_counts_from_now_on(years):
    before, now = arrive(), timezone.now() + timedelta(days=365 * years)
    assert bound_at(now - timedelta(minutes=1), now) == before
