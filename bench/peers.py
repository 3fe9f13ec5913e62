"""Ours beside Procrastinate, DBOS, Absurd, Celery, Django-Q2 and pgbench, on one machine and one PostgreSQL (fsync on).

    python bench/peers.py [--rounds 3] [--calls 2000] [--flows 400] [--probes 100] [--finished 0,100000,1000000]
                          [--only ours-worker,procrastinate] [--measure starts,drain] [--json FILE] [--images FOLDER]
                          [--add]                                  # to the rounds that the JSON holds
    python bench/peers.py --report --json FILE [--images FOLDER]      # table and plots of an earlier run

Each peer gets an environment of its own in ``.venv-peers``. The contestants take turns at each measurement, in several
rounds, so that other work on the machine disturbs all of them alike; a ratio compares two figures of the same round.
Only ratios of one run count. A peer that cannot be installed, whose server is missing, or that fails, is named with the
reason, and the others go on. The results are written after each measurement. The folder ``bench/peers`` has the parts.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Without the folder of this script: its modules are imported as parts of the package bench.
sys.path[:1] = [str(ROOT), str(ROOT / "src")]

from bench.peers.main import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__ or "")
