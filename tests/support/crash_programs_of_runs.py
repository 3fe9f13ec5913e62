"""Programs whose crash points are tested: runs that wait for several things, and runs that undo what they did."""

from __future__ import annotations

from datetime import timedelta

from django_ai.automation import (
    Concurrency,
    Retry,
    Singleton,
    complete,
    engine,
    get_wake,
    on_cancel,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.workflows.models import WorkflowRun
from tests.support.crash_points import Program, prune_in_batches, web, work
from tests.support.crash_programs import QUICK, STAY, Word, document, signalled, started
from tests.support.rows import leave


def heard() -> str:
    wake = get_wake()
    return " ".join(
        [wake.reason, wake.branch, *sorted(f"{name}={each.reason}" for name, each in wake.branches.items())]
    )


def choices() -> None:
    @workflow("choices")
    class Choices:
        Context = Word

        @step(start=True)
        def first(self):
            leave("first")
            return wait_any(
                papers=wait_for_event("document_uploaded", match={"reservation_id": STAY}),
                child=run_subflow("waits for ever"),
                bell=wait("bell"),
                later=sleep(timedelta(hours=9)),
                then=self.second,
            )

        @step()
        def second(self):
            leave(f"second {heard()} {self.context.word}")
            return wait_all(
                papers=wait_for_event("document_uploaded", match={"reservation_id": STAY}),
                one=wait("inbox"),
                child=run_subflow("ends at once"),
                later=sleep(timedelta(hours=1)),
                timeout=timedelta(hours=5),
                then=self.third,
            )

        @step()
        def third(self):
            leave(f"third {heard()} {self.context.word}")
            branches = {"never": wait("never"), "child": run_subflow("waits for ever")}
            return wait_all(branches, timeout=timedelta(hours=1), on_timeout=self.late)

        @step()
        def late(self):
            leave(f"late {heard()}")
            return complete()

    @workflow("waits for ever")
    class WaitsForEver:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("a child")
            return wait("for ever")

    @workflow("ends at once")
    class EndsAtOnce:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("another child")
            return complete()


CHOICES = Program(
    "choices",
    choices,
    [
        web(lambda: started("choices")),
        web(lambda: signalled("inbox", run="choices")),  # before its wait
        work(),
        web(lambda: signalled("bell"), 0.5),
        work(1),
        web(document, 1.5),
        work(1.6),
        work(2.5),
        work(4),
    ],
    [
        "a child",
        "a child",
        "another child",
        "first",
        "late timeout ",
        "second signal bell bell",
        "third all  child=signal later=timer one=signal papers=event inbox",
    ],
)


def paths() -> None:
    @workflow("breaks", default_retry=Retry(max_attempts=1))
    class Breaks:
        Context = Word

        @step(start=True)
        def first(self):
            leave("never")
            self.context.word = "kept"
            raise RuntimeError("broken")

        @on_fail(retry=QUICK)
        def undo(self, error):
            self.context.tries += 1
            leave(f"undo {self.context.word} {error.splitlines()[-1]} {self.context.tries}")
            if self.context.tries == 1:
                raise RuntimeError("the first try stumbles")
            return run_subflow("helps", word="help", then=self.more)

        @step(atomic=False)
        def more(self):
            leave("outside more")
            return wait("undone", timeout=timedelta(hours=1), on_timeout=self.late)

        @step()
        def late(self):
            leave("late")
            return complete()

    @workflow("helps")
    class Helps:
        Context = Word

        @step(start=True)
        def begin(self):
            leave("help")
            return complete()

    @workflow("goes")
    class Goes:
        Context = Word

        @step(start=True)
        def first(self):
            return run_subflow("stays")

        @on_cancel
        def undo(self, error):
            leave(f"undo {error}")
            return sleep(timedelta(hours=1), then=self.end)

        @step()
        def end(self):
            leave("end")
            return complete()

    @workflow("stays")
    class Stays:
        Context = Word

        @step(start=True)
        def first(self):
            return wait("never")

        @on_cancel
        def undo(self):
            leave("undo the child")


def called_off() -> None:
    run = WorkflowRun.objects.get(name="goes")
    if not run.is_finished and run.ending is None:
        engine.cancel(run, "called off")


PATHS = Program(
    "paths",
    paths,
    [
        web(lambda: started("breaks")),
        web(lambda: started("goes")),
        work(),
        web(called_off, 0.5),
        work(0.6),
        work(2),
        prune_in_batches(3),
    ],
    ["end", "help", "late", "undo called off", "undo kept RuntimeError: broken 2", "undo the child", "outside more"],
)


def replacements() -> None:
    """A new run cancels the old one, and waits until that has undone its work."""

    @workflow("only one", singleton=Singleton(on_conflict="cancel_running"), concurrency=Concurrency(1))
    class OnlyOne:
        Context = Word

        @step(start=True)
        def first(self):
            leave(f"first {self.context.word}")
            return wait("never") if self.context.word == "old" else complete()

        @on_cancel
        def undo(self):
            leave(f"undo {self.context.word}")
            return sleep(timedelta(minutes=30), then=self.undone)

        @step()
        def undone(self):
            leave(f"undone {self.context.word}")
            return complete()


def replaced() -> None:
    if WorkflowRun.objects.filter(name="only one").count() == 1:
        engine.start("only one", word="new")


REPLACEMENTS = Program(
    "replacements",
    replacements,
    [web(lambda: started("only one", word="old")), work(), web(replaced, 0.5), work(0.6), work(2), prune_in_batches(3)],
    ["first new", "first old", "undo old", "undone old"],
)
