"""Types of workflows: decorators, outcomes, the Context, the engine."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from pydantic import BaseModel

from django_ai.automation import (
    Concurrency,
    On,
    Outcome,
    RateLimit,
    Retry,
    Singleton,
    Throttle,
    Workflow,
    complete,
    engine,
    event_workflow,
    fail,
    get_context,
    get_wake,
    goto,
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
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import Wake, WakeReason
from django_ai.automation.workflows.models import Signal, WorkflowRun, WorkflowRunQuerySet


class PrintContext(BaseModel):
    pages: int = 0


class OtherContext(BaseModel):
    pass


@workflow("print catalogue")
class PrintCatalogue(Workflow[PrintContext]):
    Context = PrintContext

    @classmethod
    def create_context(cls, pages: int) -> PrintContext:
        return cls.Context(pages=pages)

    @step(start=True, timeout=timedelta(hours=1))
    def count(self) -> Outcome:
        assert_type(self.context, PrintContext)
        assert_type(self.context.pages, int)
        print(self.context.paper)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
        return goto(self.set_type, progress=0.5)

    @step
    def set_type(self) -> Outcome:
        return sleep(timedelta(minutes=5), then=self.bind)

    @step()
    def bind(self, again: bool = False) -> Outcome:
        if again:
            return wait("glue", timedelta(days=1), on_timeout=self.give_up, then="deliver")
        return wait.for_event("glue_delivered", then=self.deliver)

    @wait_for_event("lorry_arrived", timedelta(days=1), on_timeout="give_up")
    @step()
    def deliver(self) -> Outcome:
        if get_wake().reason == WakeReason.TIMEOUT:
            return run_subflow(SendBill, then=self.count, pages=self.context.pages)
        return complete(pages=0)

    @step()
    def give_up(self) -> Outcome:
        return fail("No lorry came.")

    @step()
    def choose(self) -> Outcome:
        wake = get_wake()
        assert_type(wake.branch, str)
        assert_type(wake.branches["glue"], Wake)
        assert_type(wake.branches["glue"].reason, WakeReason)
        if wake.branch == "later":
            pages = {f"page {number}": run_subflow(SendBill, pages=number) for number in range(self.context.pages)}
            return wait_all(pages, glue=wait("glue"), then=self.bind, timeout=timedelta(days=1), on_timeout="give_up")
        return wait_any(
            glue=wait_for_event("glue_delivered", then=self.bind),
            later=sleep(timedelta(days=1)),
            bill=run_subflow(SendBill, pages=1),
            then=self.choose,
        )

    @on_fail
    def report(self, error: str) -> None:
        assert_type(self.context.pages, int)

    @on_cancel(retry=Retry(max_attempts=9), atomic=False, timeout=timedelta(hours=1))
    def clean_up(self, run: WorkflowRun) -> Outcome:
        return goto(self.give_up)


def urgency(event: Event) -> int:
    return 5 if event.changes else 0


def is_wanted(event: object) -> bool:
    return event is not None


@event_workflow(
    "catalogue_printed",
    offset=timedelta(days=1),
    deadline=timedelta(days=9),
    queue="mail",
    priority=urgency,
    when=is_wanted,
    cancel_on=[On("catalogue_recalled", match={"pk": 7})],
)
class SendBill:
    """A class without the base, as ever: its Context is not typed."""

    class Context(BaseModel):
        pages: int = 0

    @step(start=True)
    def send(self) -> Outcome:
        assert_type(get_context(), Any)
        return complete()


def a_helper_asks_for_its_class() -> None:
    assert_type(get_context(PrintContext), PrintContext)
    assert_type(get_context(SendBill.Context).pages, int)
    assert_type(get_wake(), Wake)
    get_context(int)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def decorated_classes_and_methods_keep_their_types(catalogue: PrintCatalogue) -> None:
    assert_type(PrintCatalogue(), PrintCatalogue)
    assert_type(SendBill(), SendBill)
    assert_type(catalogue.count(), Outcome)
    assert_type(catalogue.set_type(), Outcome)
    assert_type(catalogue.bind(again=True), Outcome)
    assert_type(catalogue.deliver(), Outcome)
    assert_type(catalogue.report("out of paper"), None)
    assert_type(catalogue.clean_up(WorkflowRun()), Outcome)
    catalogue.bind(once=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    catalogue.count(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    catalogue.report()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def arguments_are_checked() -> None:
    on_fail(retry=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    step(timeout=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    goto("deliver", progress="half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    goto(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sleep(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    event_workflow("x", when=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    workflow("x", cancel_on=["recalled"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    On("recalled", match="pk")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wait_any(a=wait("a"), b=goto("b"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    wait_all(a=wait_any(b=wait("b")))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    workflow("print catalogue", priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    workflow("print catalogue", queue=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Workflow[int]  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeArguments]


def a_run_gives_its_context(run: WorkflowRun) -> None:
    assert_type(run.context, Any)
    assert_type(run.context_as(PrintContext), PrintContext)
    assert_type(run.result(), Any)
    assert_type(run.result(PrintContext).pages, int)
    assert_type(run.wait(timedelta(minutes=1)), WorkflowRun)
    assert_type(run.wait().result(PrintContext), PrintContext)
    run.context_as(int)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    run.wait(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def limits_have_types() -> None:
    limit = Concurrency(3, key="{{ ctx.pages }}")
    workflow("print", concurrency=limit, throttle=Throttle(1, per=timedelta(seconds=1)), singleton=Singleton())
    event_workflow(
        "catalogue_printed", concurrency=[limit, Concurrency(20)], rate_limit=RateLimit(1, timedelta(days=1))
    )
    assert_type(limit.key, str | None)
    workflow("print", concurrency=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    workflow("print", throttle=limit)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Singleton(on_conflict="wait")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Throttle(10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def the_engine_has_types(run: WorkflowRun, event: Event) -> None:
    assert_type(engine.start(PrintCatalogue, pages=5), WorkflowRun)
    assert_type(engine.start("print catalogue", pages=5), WorkflowRun)
    assert_type(engine.start(PrintCatalogue, key="spring", if_exists="restart", pages=5), WorkflowRun)
    engine.start(PrintCatalogue, key="spring", if_exists="again")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(engine.runs("print catalogue", status=["failed"], key="spring"), WorkflowRunQuerySet)
    assert_type(engine.runs(PrintCatalogue, entity=event, status="failed").unfinished(), WorkflowRunQuerySet)
    assert_type(engine.signal("glue", {"litres": 2}, run=run), Signal)
    assert_type(engine.cancel(run, "Out of paper.", at_once=True), bool)
    assert_type(engine.resume(run, "bind"), WorkflowRun)
    assert_type(engine.pause(run, reason="Out of paper."), bool)
    assert_type(engine.unpause(workflow=PrintCatalogue), bool)
    engine.pause(queue=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(engine.handle_event_occurred(event), None)
