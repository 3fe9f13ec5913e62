"""A small ``bench/under_fire.py``: while workers are killed, everything ends, and each effect occurs exactly once."""

from __future__ import annotations

import pytest

from tests.support.child_processes import environment
from tests.support.soak.under_fire import Fire

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.alone, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("kind", "one", "five", "every"),
    [("workers", 1000, 200, 1.0), ("qcluster", 1500, 300, 0.5)],
    ids=["workers", "qcluster"],
)
def test_real_seconds_all_runs_end_while_processes_are_killed(kind, one, five, every, tmp_path):
    fire = Fire(
        runs={1: one, 5: five},
        environment=environment(TEST_LEASE_SECONDS="2", TEST_RUNTIME="silent"),
        scratch=tmp_path,
        every=every,
        patience=240,
    )
    fire.fight(kind)
    assert fire.count["killed"]
    assert fire.verdict() == []
