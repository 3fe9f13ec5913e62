"""A short soak on a database of its own; ``python -m tests.support.soak.run --minutes 60`` runs a longer one.

``SOAK_SECONDS``, ``SOAK_SKEW`` and ``SOAK_SEED`` set the duration, the clock skew and the random seed, which is
printed. To finish the work that was started takes about as long again.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from tests.support.child_processes import ROOT
from tests.support.soak.run import SKIP

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
KIND = os.environ.get("TEST_DATABASE", "sqlite")


@pytest.mark.alone
@pytest.mark.timeout(SECONDS + 300)
def test_real_seconds_random_programs_under_fire():
    if KIND == "mariadb" and "SOAK_SECONDS" not in os.environ:
        pytest.skip("The gate soaks on SQLite and PostgreSQL; set SOAK_SECONDS=60 to soak on MariaDB.")
    seed = os.environ.get("SOAK_SEED") or str(random.SystemRandom().randrange(10**6))
    command = [sys.executable, "-m", "tests.support.soak.run"]
    command += ["--minutes", str(SECONDS / 60), "--seed", seed, "--database", KIND]
    command += ["--skew", os.environ.get("SOAK_SKEW", "0.4"), "--replica"]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    print(done.stdout)
    if done.returncode == SKIP:
        pytest.skip(done.stdout)
    assert done.returncode == 0, f"{done.stdout[:20_000]}\n{done.stderr[-5000:]}"
