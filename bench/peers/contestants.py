"""Who takes part, and what each needs. Which figures each has, and how it is configured, its driver says."""

from __future__ import annotations

from dataclasses import dataclass

THROUGHPUT = ("starts", "drain", "end_to_end")
ALL = ("starts", "drain", "end_to_end", "five", "latency", "growth")


@dataclass(frozen=True)
class Contestant:
    name: str
    label: str
    driver: str
    """A module of ``bench.peers.drivers``."""
    variant: str = ""
    requirements: tuple[str, ...] = ()
    """Packages of its environment; empty: the environment that runs the benchmark."""
    needs: frozenset[str] = frozenset({"postgresql"})
    measurements: tuple[str, ...] = ALL
    ours: bool = False


PSYCOPG = "psycopg[binary]>=3.2"

CONTESTANTS = (
    Contestant("ours-worker", "automation_worker", "ours", "worker", ours=True),
    Contestant("ours-q2", "qcluster", "ours", "q2", measurements=(*THROUGHPUT, "five", "latency"), ours=True),
    Contestant(
        "procrastinate",
        "Procrastinate",
        "procrastinate_jobs",
        requirements=("procrastinate>=3.5", PSYCOPG),
        measurements=(*THROUGHPUT, "latency", "growth"),
    ),
    Contestant("dbos", "DBOS", "dbos_transact", requirements=("dbos>=3", PSYCOPG)),
    Contestant("absurd", "Absurd", "absurd_tasks", requirements=("absurd-sdk>=0.5", "absurdctl>=0.5", PSYCOPG)),
    Contestant(
        "celery",
        "Celery (Redis)",
        "celery_redis",
        requirements=("celery[redis]>=5.5",),
        needs=frozenset({"redis"}),
        measurements=(*THROUGHPUT, "latency"),
    ),
    Contestant(
        "q2",
        "Django-Q2 (ORM)",
        "django_q2",
        requirements=("django-q2>=1.8", "django>=5.2", PSYCOPG),
        measurements=(*THROUGHPUT, "latency", "growth"),
    ),
    Contestant("pgbench", "pgbench", "pgbench_sql", measurements=THROUGHPUT),
)


def named(name: str) -> Contestant:
    return next(each for each in CONTESTANTS if each.name == name)
