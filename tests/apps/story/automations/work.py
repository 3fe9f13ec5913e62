"""The automations that workers run in the tests of runtimes and faults."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from django_ai.automation import (
    Retry,
    complete,
    event_workflow,
    get_context,
    get_wake,
    goto,
    idempotency_key,
    on_event,
    sleep,
    step,
    wait,
    workflow,
)

from ..models import Mark


@on_event("probe_due")
def mark_due(event):
    Mark.objects.create(name=f"due:{event.entity.name}")


@event_workflow("probe_ready", name="story:greet")
class Greet:
    class Context(BaseModel):
        probe: str

    @classmethod
    def create_context(cls, event):
        return cls.Context(probe=event.entity.name)

    @step(start=True)
    def first(self):
        Mark.objects.create(name=f"ready:{self.context.probe}", key=idempotency_key())
        return complete()


@workflow("story:nap")
class Nap:
    class Context(BaseModel):
        seconds: float

    @step(start=True)
    def doze(self):
        if get_wake().reason == "timer":
            Mark.objects.create(name="nap:awake")
            return complete()
        Mark.objects.create(name="nap:asleep")
        return sleep(timedelta(seconds=self.context.seconds))


@workflow("story:stumble")
class Stumble:
    class Context(BaseModel):
        tries: int = 0

    @step(start=True, retry=Retry(max_attempts=2, base_delay=timedelta(seconds=2)))
    def trip(self):
        ctx = get_context()
        ctx.tries += 1
        if ctx.tries == 1:
            raise RuntimeError("the first try stumbles")
        Mark.objects.create(name="stumble:up")
        return complete()


@workflow("story:victim")
class Victim:
    """The first attempt writes a row, stores its process id in a file, and hangs until it is killed."""

    class Context(BaseModel):
        flag: str
        atomic: bool

    @step(start=True)
    def begin(self):
        return goto(self.in_transaction if self.context.atomic else self.outside)

    @step()
    def in_transaction(self):
        return self._work()

    @step(atomic=False)
    def outside(self):
        return self._work()

    def _work(self):
        flag = Path(self.context.flag)
        if not flag.exists():
            Mark.objects.create(name="victim:first", key=idempotency_key())
            flag.write_text(str(os.getpid()))
            time.sleep(60)
        Mark.objects.create(name="victim:done", key=idempotency_key())
        return complete()


@workflow("story:long")
class Long:
    """One step outside a transaction, so that its first write is visible immediately."""

    class Context(BaseModel):
        seconds: float

    @step(start=True, atomic=False)
    def last(self):
        Mark.objects.create(name="long:begin", key=str(os.getpid()))
        time.sleep(self.context.seconds)
        Mark.objects.create(name="long:end", key=str(os.getpid()))
        return complete()


@workflow("story:count")
class Count:
    class Context(BaseModel):
        steps: int
        done: int = 0

    @step(start=True)
    def one(self):
        self.context.done += 1
        Mark.objects.create(name="story:count")
        return complete() if self.context.done >= self.context.steps else goto(self.one)


@workflow("story:report", queue="reports" if "TEST_QUEUES" in os.environ else None)
class Report:
    """In a queue of its own in the processes of the tests of named queues; other tests have no lanes."""

    class Context(BaseModel):
        word: str = ""

    @step(start=True)
    def write(self):
        Mark.objects.create(name="story:report")
        return complete()


@workflow("story:listen")
class Listen:
    class Context(BaseModel):
        word: str = ""

    @step(start=True)
    def hear(self):
        if get_wake().reason == "signal":
            Mark.objects.create(name=f"heard:{self.context.word}")
            return complete()
        return wait("story:word")


@workflow("story:hung")
class Hung:
    """The first attempt writes a row, stores its process id, and hangs until released. Later attempts do not hang."""

    class Context(BaseModel):
        flag: str
        atomic: bool

    @step(start=True)
    def begin(self):
        return goto(self.in_transaction if self.context.atomic else self.outside)

    @step()
    def in_transaction(self):
        return self._work()

    @step(atomic=False)
    def outside(self):
        return self._work()

    def _work(self):
        flag, go = Path(self.context.flag), Path(self.context.flag + ".go")
        name = "hung:second" if flag.exists() else "hung:first"
        Mark.objects.create(name=name, key=idempotency_key())
        if name == "hung:first":
            flag.write_text(str(os.getpid()))
            while not go.exists():
                time.sleep(0.02)
            Path(self.context.flag + ".late").touch()
        return complete()


@workflow("story:poison")
class Poison:
    """Kills its worker until the file ``cure`` exists. Each attempt appends a line to the file ``tries``."""

    class Context(BaseModel):
        tries: str
        cure: str

    @step(start=True)
    def begin(self):
        with Path(self.context.tries).open("a") as tries:
            tries.write(f"{os.getpid()}\n")
        if not Path(self.context.cure).exists():
            os._exit(9)
        Mark.objects.create(name="poison:cured")
        return complete()


@workflow("story:stuck")
class Stuck:
    """The first attempt cannot be interrupted."""

    class Context(BaseModel):
        how: str

    @step(start=True, atomic=False, timeout=timedelta(seconds=1))
    def begin(self):
        if not Mark.objects.filter(name="stuck").exists():
            Mark.objects.create(name="stuck")
            if self.context.how == "signals are blocked":
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                time.sleep(90)
            else:
                ctypes.PyDLL(None).sleep(90)
        return complete()
