"""After a deadlock, the package retries its own transaction, but not one that belongs to the caller."""

from __future__ import annotations

import pytest
from django.db import OperationalError, transaction

from django_ai.automation.db.deadlocks import MAX_ATTEMPTS, retry_on_deadlock

pytestmark = pytest.mark.django_db(transaction=True)


class Work:
    """Work that the database refuses ``refused`` times with the error ``code``."""

    def __init__(self, refused: int, code: int = 1213) -> None:
        self.refused, self.code, self.calls = refused, code, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.refused:
            raise OperationalError(self.code, "refused") from Exception(self.code, "refused")
        return "done"


def test_a_deadlock_is_tried_again():
    work = Work(2)
    assert retry_on_deadlock("default", work) == "done"
    assert work.calls == 3


def test_not_for_ever():
    work = Work(MAX_ATTEMPTS)
    with pytest.raises(OperationalError):
        retry_on_deadlock("default", work)
    assert work.calls == MAX_ATTEMPTS


def test_another_database_failure_is_not():
    work = Work(1, code=2006)  # the connection broke: the transaction may be committed
    with pytest.raises(OperationalError):
        retry_on_deadlock("default", work)
    assert work.calls == 1


def test_the_callers_transaction_is_the_callers():
    work = Work(1)
    with pytest.raises(OperationalError), transaction.atomic():
        retry_on_deadlock("default", work)
    assert work.calls == 1
