"""How many statements a start takes, and a step of a run that was woken."""

from __future__ import annotations

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from django_ai.automation.queues.drain import drain
from django_ai.automation.queues.models import Arrival
from django_ai.automation.queues.positions import allocate, lower_bound
from django_ai.automation.queues.renaming import record
from django_ai.automation.workflows.core import complete, engine, wait
from tests.support.marks import only_on
from tests.support.workflows import flow

pytestmark = pytest.mark.django_db(transaction=True)

IS_ONE_STATEMENT = connection.vendor == "postgresql"
AGAIN = {"postgresql": 3, "mysql": 5}
"""Statements of a start whose key is taken."""
IN_AN_EMPTY_TABLE = {"postgresql": 1, "mysql": 3}
"""Statements of a start where the table of arrivals is empty."""


@pytest.fixture(autouse=True)
def started():
    """A workflow, in a process that knows a position."""
    flow(lambda self: complete(), "order")
    with transaction.atomic():
        allocate(1)
    lower_bound()


def test_a_start_is_one_statement_on_postgresql(django_assert_num_queries):
    with transaction.atomic(), django_assert_num_queries(1 if IS_ONE_STATEMENT else 2):
        engine.start("order")


def test_a_start_is_one_statement_where_nothing_has_ever_arrived(django_assert_num_queries):
    """As in a project that only starts workflows. Later starts see what has arrived."""
    Arrival.objects.all().delete()
    engine.start("order")
    with transaction.atomic(), django_assert_num_queries(IN_AN_EMPTY_TABLE.get(connection.vendor, 2)):
        assert engine.start("order").position == 0
    with transaction.atomic():
        (arrived,) = allocate(1)
    assert engine.start("order").position == arrived


def test_a_start_with_a_key_is_one_statement_on_postgresql(django_assert_num_queries):
    record("workflow", "something_else", "its_new_name")
    with transaction.atomic(), django_assert_num_queries(1 if IS_ONE_STATEMENT else 3):
        run = engine.start("order", key="12")
    with transaction.atomic(), django_assert_num_queries(AGAIN.get(connection.vendor, 4)):
        assert engine.start("order", key="12") == run


def test_a_start_with_a_key_finds_the_run_of_a_former_name():
    flow(lambda self: complete(), "former_order")
    run = engine.start("former_order", key="12")
    record("workflow", "former_order", "order")
    assert engine.start("order", key="12") == run


@only_on("postgresql", reason="Elsewhere progress and history are two statements")
def test_a_woken_step_reads_its_signal_before_its_transaction():
    flow(lambda self: wait("bell", then=self.end), "waiting", end=lambda self: complete())
    engine.start("waiting")
    drain()
    engine.signal("bell")
    with CaptureQueriesContext(connection) as queries:
        drain()
    statements = [query["sql"] for query in queries]
    begun = max(number for number, sql in enumerate(statements) if sql == "BEGIN")
    assert statements[begun + 1] == "COMMIT"  # which sends nothing, as the transaction is untouched
    assert statements[begun + 2].startswith("WITH kept AS (UPDATE")
