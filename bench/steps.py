"""What ``run.py`` measures of steps that write with the ORM, of woken ones, of timers beside many others, and of events
that occur in a save."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace

from bench.run import cluster, timers, until

Figures = dict[str, float]
PENDING_TIMERS = 100_000


def writes(options: Namespace) -> Figures:
    """Steps a second of two workers, where each of five steps inserts a row."""
    from django.db import transaction
    from django.db.models import Max, Min

    from bench.load.models import Plain
    from django_ai.automation import engine
    from django_ai.automation.workflows.models import StepExecution, WorkflowRun

    before = Plain.objects.count()
    with transaction.atomic():
        for _ in range(options.flows):
            engine.start("writing")
    with cluster():
        until(lambda: WorkflowRun.objects.unfinished().count() == 0, 120, 0.5)
    span = StepExecution.objects.aggregate(first=Min("started"), last=Max("finished"))
    assert Plain.objects.count() - before == options.flows * 5
    return {"steps with one write per second": options.flows * 5 / (span["last"] - span["first"]).total_seconds()}


def woken(options: Namespace) -> Figures:
    """What a step of a run costs that a signal has woken, and the only one of a new run, in one process."""
    from django.db import transaction

    from django_ai.automation import engine
    from django_ai.automation.queues.drain import drain
    from django_ai.automation.workflows.models import Signal, WorkflowRun

    figures: Figures = {}
    number = options.flows
    for name, arguments, what in (
        ("one", {}, "one step of a new run, one process, ms"),
        ("wait for all", {"owner": 1}, "one step of a woken run, one process, ms"),
    ):
        with transaction.atomic():
            for _ in range(number):
                engine.start(name, **arguments)
        if name != "one":
            drain(heartbeat=True)
            engine.signal("all")
            drain(heartbeat=True, models=[Signal])  # the delivery, which wakes all of them at once
        begun = time.perf_counter()
        drain(heartbeat=True)
        figures[what] = (time.perf_counter() - begun) / number * 1000
        assert not WorkflowRun.objects.unfinished().exists()
    return figures


def occurrence(options: Namespace) -> Figures:
    """How long a ``save()`` takes in all whose event occurs at once, and starts a run."""
    from bench.load.models import Eventful

    found = []
    for _ in range(300):
        begun = time.perf_counter()
        Eventful.objects.create(name="x", ready=True)
        found.append((time.perf_counter() - begun) * 1000)
    return {"save() of a new model, its event starts a run, ms": statistics.median(found)}


def timers_among_many(options: Namespace) -> Figures:
    """The lateness of timers with many others pending."""
    from bench.starts import plan_timers

    plan_timers(PENDING_TIMERS)
    return {
        f"{name.removesuffix(', ms')} with {PENDING_TIMERS:,} pending, ms": late
        for name, late in timers(options).items()
    }
