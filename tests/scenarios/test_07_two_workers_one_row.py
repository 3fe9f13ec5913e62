"""07, two workers and one row of any kind: one worker claims it, and the other continues at once, on every database."""

from __future__ import annotations

import pytest
from django.db import transaction
from django.utils import timezone

from django_ai.automation.conf import conf
from django_ai.automation.queues.claim import claim
from django_ai.automation.queues.drain import drain
from tests.support.race import row_locks, together
from tests.support.rows import effects
from tests.support.wakeable_kinds import KINDS

pytestmark = pytest.mark.django_db(transaction=True)

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@each_kind
def test_07_one_of_two_claims_gets_it(kind):
    KINDS[kind]()
    moment, taken = timezone.now(), []

    def take() -> None:
        taken.extend(claim(kind, moment, 20))

    assert together(take, take, take) == []
    assert len(taken) == 1
    # Not performed, as if the worker had died: the row is claimed once more after its lease.
    drain(moment + conf().LEASE)
    drain(moment + conf().LEASE)
    assert effects() == ["done"]


@each_kind
def test_07_two_drains_perform_it_once(kind):
    KINDS[kind]()
    assert together(drain, drain, drain) == []
    drain()
    assert effects() == ["done"]


@row_locks
@each_kind
def test_07_who_comes_while_it_is_being_claimed_passes_by(kind):
    """A claim skips a row that another worker's uncommitted claim has locked; it does not wait."""
    KINDS[kind]()
    second = []
    with transaction.atomic():
        (first,) = claim(kind, timezone.now(), 20)
        assert together(lambda: second.extend(claim(kind, timezone.now(), 20))) == []
    assert second == []
    first.perform(timezone.now)
    drain()
    assert effects() == ["done"]


@row_locks
@each_kind
def test_07_a_claim_that_is_rolled_back_leaves_it_to_the_other(kind):
    KINDS[kind]()
    with transaction.atomic():
        claim(kind, timezone.now(), 20)
        transaction.set_rollback(True)
    drain()
    assert effects() == ["done"]
