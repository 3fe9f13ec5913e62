"""Limited workflows whose steps leave when they began and ended, and in which process."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import Concurrency, Singleton, Throttle, complete, sleep, step, workflow

from ..models import Effect

BY_KEY, OF_EACH, TOTAL, PER_SECOND = 3, 2, 3, 10


class Job(BaseModel):
    tag: str
    group: str = ""
    seconds: float = 0.05


def execute(job: Job) -> None:
    """Leave the beginning and the end, outside any transaction."""
    Effect.objects.create(owner=job.tag, key="begin", serial=os.getpid())
    time.sleep(job.seconds)
    Effect.objects.create(owner=job.tag, key="end", serial=os.getpid())


class TwoSteps:
    Context = Job
    context: Job

    @step(start=True, atomic=False)
    def first(self):
        execute(self.context)
        return sleep(timedelta(milliseconds=20), then=self.second)

    @step(atomic=False)
    def second(self):
        execute(self.context)
        return complete()


@workflow("limited:concurrency", concurrency=Concurrency(BY_KEY, key="{{ ctx.group }}"))
class Limited(TwoSteps):
    pass


@workflow("limited:both", concurrency=[Concurrency(OF_EACH, key="{{ ctx.group }}"), Concurrency(TOTAL)])
class LimitedTwice(TwoSteps):
    pass


@workflow("limited:queue", singleton=Singleton(key="{{ ctx.group }}", on_conflict="queue"))
class Queued(TwoSteps):
    pass


@workflow("limited:newest", singleton=Singleton(key="{{ ctx.group }}", on_conflict="cancel_running"))
class Newest(TwoSteps):
    pass


@workflow("limited:throttle", throttle=Throttle(PER_SECOND, per=timedelta(seconds=1)))
class Throttled:
    Context = Job
    context: Job

    @step(start=True)
    def only(self):
        Effect.objects.create(owner=self.context.tag, key="begin", serial=os.getpid())
        return complete()
