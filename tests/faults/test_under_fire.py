"""A small ``bench/under_fire.py``: everything ends, and each effect is there exactly once, while workers are killed."""

from __future__ import annotations

import pytest

from tests.runtimes.cluster import environment

from .fire import Fire

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.alone, pytest.mark.timeout(300)]


@pytest.mark.parametrize("kind", ["workers", "qcluster"])
def test_real_seconds_all_runs_end_while_a_worker_is_killed_every_second(kind, tmp_path):
    fire = Fire(
        runs={1: 1000, 5: 200},
        environment=environment(TEST_LEASE_SECONDS="2", TEST_EXECUTOR="silent"),
        scratch=tmp_path,
        patience=240,
    )
    fire.fight(kind)
    assert fire.verdict() == []
