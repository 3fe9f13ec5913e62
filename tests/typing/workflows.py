"""Types of workflows: decorators, outcomes, the Context, the engine."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

from pydantic import BaseModel

from django_ai.automation import (
    Outcome,
    Workflow,
    complete,
    engine,
    event_workflow,
    fail,
    get_context,
    get_wake,
    goto,
    on_fail,
    run_subflow,
    sleep,
    step,
    wait,
    wait_for_event,
    workflow,
)
from django_ai.automation.events.models import Event
from django_ai.automation.workflows.core import Wake, WakeReason
from django_ai.automation.workflows.models import Signal, WorkflowRun


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
        return goto(self.set_type)

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

    @on_fail
    def report(self, error: str) -> None:
        assert_type(self.context.pages, int)


@event_workflow("catalogue_printed", offset=timedelta(days=1))
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
    catalogue.bind(once=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    catalogue.count(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    catalogue.report()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def arguments_are_checked() -> None:
    step(timeout=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    goto(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sleep(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Workflow[int]  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeArguments]


def the_engine_has_types(run: WorkflowRun, event: Event) -> None:
    assert_type(engine.start(PrintCatalogue, pages=5), WorkflowRun)
    assert_type(engine.start("print catalogue", pages=5), WorkflowRun)
    assert_type(engine.signal("glue", {"litres": 2}, run=run), Signal)
    assert_type(engine.cancel(run, "Out of paper."), bool)
    assert_type(engine.resume(run, "bind"), WorkflowRun)
    assert_type(engine.handle_event_occurred(event), None)
