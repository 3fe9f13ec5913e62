"""Throughput under fire: a worker is killed every second until all runs have ended, each effect exactly once.

    python bench/under_fire.py [--database sqlite] [--one 10000] [--five 2000] [--kind workers] [--every 1.0]
                               [--workers 3] [--seed 1]

On a database of its own, with leases of ten seconds as in production. ``--kind workers``: plain worker processes, a
dead one replaced at once. ``--kind qcluster``: any process of the cluster may be killed, the idle ones too, and a
cluster that has wedged by it is started anew by the health check. Exit code 0: all have ended, and each effect is there
exactly once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.support.soak.run import own_database, set_up  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("one", 10_000), ("five", 2_000), ("workers", 3), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--kind", choices=("workers", "qcluster"), default="workers")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "mariadb"), default="postgresql")
    wanted = parser.parse_args()
    with own_database(wanted.database, lease=10), tempfile.TemporaryDirectory(prefix="fire-") as scratch:
        set_up()
        from tests.support.soak.under_fire import Fire

        fire = Fire(
            runs={1: wanted.one, 5: wanted.five},
            environment={**os.environ},
            scratch=Path(scratch),
            every=wanted.every,
            workers=wanted.workers,
            seed=wanted.seed,
        )
        seconds = fire.fight(wanted.kind)
        wrong = fire.verdict()
    steps = wanted.one + 5 * wanted.five
    print(
        f"{wanted.kind} on {wanted.database}: {wanted.one} one-step and {wanted.five} five-step runs ended in "
        f"{seconds:.0f} s, {steps / seconds:,.0f} steps a second; {dict(fire.count)}"
    )
    for each in wrong[:50]:
        print(each)
    print(f"{len(wrong)} effects or runs are not as they must be" if wrong else "every effect is there exactly once")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
