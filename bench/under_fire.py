"""Throughput while a worker is killed every second, and whether each effect happens exactly once.

    python bench/under_fire.py [--database sqlite] [--one 10000] [--five 2000] [--kind workers] [--every 1.0]
                               [--workers 3] [--seed 1]

It uses a separate database, and leases of ten seconds as in production. ``--kind workers``: plain worker processes; a
killed one is replaced at once. ``--kind qcluster``: any process of the cluster may be killed, idle ones included, and a
cluster that hangs is restarted when the health check reports it. Exit code 0: all runs have finished, and each effect
exists exactly once.
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
    options = parser.parse_args()
    with own_database(options.database, lease=10), tempfile.TemporaryDirectory(prefix="fire-") as scratch:
        set_up()
        from tests.support.soak.under_fire import Fire

        fire = Fire(
            runs={1: options.one, 5: options.five},
            environment={**os.environ},
            scratch=Path(scratch),
            every=options.every,
            workers=options.workers,
            seed=options.seed,
        )
        seconds = fire.fight(options.kind)
        wrong = fire.verdict()
    steps = options.one + 5 * options.five
    print(
        f"{options.kind} on {options.database}: {options.one} one-step and {options.five} five-step runs finished in "
        f"{seconds:.0f} s, {steps / seconds:,.0f} steps per second; {dict(fire.count)}"
    )
    for each in wrong[:50]:
        print(each)
    print(f"FAILED: {len(wrong)} wrong effects or runs." if wrong else "Every effect exists exactly once.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
