"""Captured writes in the tests of a project: a ``TestCase`` never commits; each block of a test is a transaction."""

from __future__ import annotations

import unittest

import pytest
from django.db import connection, transaction
from django.test import TestCase

from django_ai.automation.events.definitions import EventDefinition
from django_ai.automation.testing import time_machine
from tests.apps.captured.models import UPDATE, Parcel
from tests.support.captured_writes import outbox

pytestmark = pytest.mark.django_db(transaction=True)

SHIPPED = EventDefinition("shipped", was={"state": "packed"}, becomes={"state": "sent"}, capture=True)
UPDATED = EventDefinition("updated", trigger=UPDATE, capture=True)


def passed(case: type[unittest.TestCase]) -> int:
    """Run a test case, and return how many tests it has passed."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert "\n".join(text for _, text in [*result.errors, *result.failures]) == ""
    return result.testsRun


def update(*states: str) -> None:
    for state in states:
        Parcel.objects.update(state=state)


def test_each_statement_and_each_block_of_a_test_is_a_transaction(declare):
    declare(Parcel, SHIPPED, UPDATED)

    class Shipping(TestCase):
        @classmethod
        def setUpTestData(cls) -> None:
            Parcel.objects.bulk_create([Parcel(pk=1), Parcel(pk=2)])

        def setUp(self) -> None:
            self.machine = self.enterContext(time_machine("2030-01-07T12:00+00:00", raise_errors=True))

        def occurred(self, name: str, times: int) -> None:
            self.machine.process()
            self.machine.assert_occurred(name, Parcel.objects.get(pk=1), times=times)

        def test_statements(self) -> None:
            update("sent", "packed", "lost", "sent", "packed", "sent")
            self.occurred("shipped", 2)
            self.occurred("updated", 6)

        def test_blocks(self) -> None:
            @transaction.atomic
            def write(*states: str) -> None:
                update(*states)

            write("sent")
            write("packed")
            write("sent", "packed")
            write("lost", "sent")
            self.occurred("shipped", 2)
            self.occurred("updated", 4)

        def test_raw_sql(self) -> None:
            with connection.cursor() as cursor:
                for state in ("sent", "packed", "sent"):
                    cursor.execute("UPDATE captured_parcel SET state = %s", [state])
            self.occurred("shipped", 2)

        def test_saves_between(self) -> None:
            parcel = Parcel.objects.get(pk=1)
            update("lost")
            parcel.state = "sent"  # from "lost"
            parcel.save()
            update("packed")
            parcel.save()  # from "packed"
            with transaction.atomic():
                update("packed")
                parcel.save()  # sent before the block, and after it
            self.occurred("shipped", 1)

        def test_a_save_and_then_a_statement(self) -> None:
            parcel = Parcel.objects.get(pk=1)
            parcel.save()
            update("sent")
            self.occurred("shipped", 1)
            self.occurred("updated", 2)

    assert passed(Shipping) == 5
    assert outbox() == []
