"""The graph of a workflow: what the source of its steps tells, and where it says that only the running code decides."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from pydantic import BaseModel

from django_ai import automation
from django_ai.automation import (
    On,
    complete,
    event_workflow,
    fail,
    goto,
    on_cancel,
    on_fail,
    run_subflow,
    schedule,
    sleep,
    step,
    wait,
    wait_all,
    wait_any,
    wait_for_event,
    workflow,
)
from django_ai.automation.console.graphs import EdgeKind, Graph, NodeKind, graph_named
from django_ai.automation.workflows.source_outcomes import outcomes_of

ANSWER = "desk:answer"


class Empty(BaseModel):
    following: str = "ship"
    delay: timedelta = timedelta(hours=1)


class Clean:
    Context = Empty

    @step(start=True)
    def clean(self):
        return complete()


def graph_of(cls: type, name: str = "shop", **options) -> Graph:
    workflow(name, **options)(cls)
    return graph_named(name)


def sentences(graph: Graph) -> list[str]:
    return [each for each in graph.sentences() if not each.startswith("start ")]


def test_each_outcome_has_its_node_and_its_ways():
    workflow("clean")(Clean)

    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            if self.context.following:
                return goto(self.price)
            return wait(ANSWER, timedelta(hours=4), on_timeout=self.give_up, then=self.price)

        @step
        def price(self):
            return sleep(timedelta(minutes=30), then="ship")

        @step
        def ship(self):
            return run_subflow(Clean, then=self.paid)

        @step
        def paid(self):
            return wait_for_event("order_paid", timeout=self.context.delay, then=self.end, on_timeout=self.paid)

        @step
        def end(self):
            return complete() if self.context.delay else fail("no room")

        @step
        def give_up(self):
            return goto(self.give_up) if time.time() < 0 else complete()

    graph = graph_of(Shop)
    assert graph.sentences() == [
        "start by code, or as a child → ask",
        "ask → price",
        "ask → desk:answer waits for the signal",
        "desk:answer waits for the signal → price",
        "desk:answer waits for the signal → give_up (after 4 h)",
        "price → sleeps 30 min",
        "sleeps 30 min → ship",
        "ship → clean waits for the child run",
        "clean waits for the child run → paid",
        "paid → order_paid waits for the event",
        "order_paid waits for the event → end",
        "order_paid waits for the event → paid (after self.context.delay)",
        "end → Completed",
        "end → Failed (fails: no room)",
        "give_up → give_up",
        "give_up → Completed",
    ]
    assert [node.label for node in graph.nodes if node.kind == NodeKind.STEP] == [
        *("ask", "price", "ship", "paid", "end", "give_up")
    ], "in the order of the source"
    assert [each.kind for each in graph.edges if each.label.startswith("after")] == [EdgeKind.TIMEOUT] * 2
    assert graph.notes == ()


def test_a_wait_without_a_next_step_leads_back():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            return wait(ANSWER)

    assert sentences(graph_of(Shop)) == [
        "ask → desk:answer waits for the signal",
        "desk:answer waits for the signal → ask",
    ]


def test_the_branches_of_a_choice():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            return wait_any(
                paid=wait_for_event("order_paid", then=self.end),
                late=sleep(timedelta(days=2), then=self.collect),
                off=wait("off"),
                timeout=timedelta(days=3),
                on_timeout=self.end,
            )

        @step
        def collect(self):
            files = {"one": run_subflow("clean"), "two": run_subflow("clean")}
            return wait_all(files, then=self.more)

        @step
        def more(self):
            return wait_all({"bill": wait("bill"), "keys": wait("keys", timedelta(hours=1))}, then=self.end)

        @step
        def end(self):
            return complete()

    found = sentences(graph_of(Shop))
    assert found == [
        "ask → waits for the first of paid, late, off",
        "waits for the first of paid, late, off → end (paid: event order_paid)",
        "waits for the first of paid, late, off → collect (late: after 2 d)",
        "waits for the first of paid, late, off → ask (off: signal off)",
        "waits for the first of paid, late, off → end (after 3 d)",
        "collect → waits for all of …: files",
        "waits for all of …: files → more",
        "more → waits for all of bill: signal bill, keys: signal keys, after 1 h",
        "waits for all of bill: signal bill, keys: signal keys, after 1 h → end",
        "end → Completed",
    ]


def test_a_target_that_is_computed_cannot_be_known_and_says_so():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            return goto(self.context.following)

        @step
        def ship(self):
            return wait(ANSWER, then=getattr(self, self.context.following))

        @step
        def choose(self):
            return {"ship": goto(self.ship)}[self.context.following]

    graph = graph_of(Shop)
    assert sentences(graph) == [
        "ask → computed by the code goto(self.context.following)",
        "ship → desk:answer waits for the signal",
        "desk:answer waits for the signal → computed by the code signal desk:answer",
        "choose → computed by the code {'ship': goto(self.ship)}[self.context.following]",
    ]
    assert [each.kind for each in graph.edges if "computed" in graph.node(each.target).label] == [EdgeKind.UNKNOWN] * 3
    assert graph.notes[0] == "Which step follows ask is computed while it runs: goto(self.context.following)."
    assert len(graph.notes) == 3


def test_local_names_and_helpers_are_followed():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            outcome = goto(self.ship)
            if self.context.delay:
                outcome = self.later()
            with open("/dev/null") as _file:
                for _ in range(2):
                    try:
                        return outcome
                    except ValueError:
                        return answered()
            match self.context.following:
                case "ship":
                    return self.again()

        def later(self):
            return sleep(timedelta(days=1), then=self.ship) if self.context else self.later()

        @staticmethod
        def again():
            return automation.complete()

        @step
        def ship(self):
            time.sleep(0)

            def inner():
                return 1

            return complete()

    found = sentences(graph_of(Shop))
    assert found == [
        "ask → ship",
        "ask → sleeps 1 d",
        "sleeps 1 d → ship",
        "ask → Failed (fails: the guest has answered)",
        "ask → Completed",
        "ship → Completed",
    ]


def answered():
    return fail("the guest has answered")


def test_a_name_that_is_imported_in_the_step_itself():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            from django_ai.automation import goto as goto

            return goto("ship")

        @step
        def ship(self):
            from django_ai.automation import wait

            return wait.for_event("order_paid")

    assert sentences(graph_of(Shop))[:2] == ["ask → ship", "ship → order_paid waits for the event"]


def test_a_function_of_another_module_is_not_taken_for_an_outcome():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            return time.sleep(5)

    (sentence,) = sentences(graph_of(Shop))
    assert sentence == "ask → computed by the code time.sleep(5)"


def test_a_step_without_source_says_so():
    names: dict = {"step": step, "complete": complete, "BaseModel": BaseModel}
    exec(  # as in a shell
        "class Shop:\n"
        "    class Context(BaseModel):\n        pass\n"
        "    @step(start=True)\n    def ask(self):\n        return complete()\n",
        names,
    )
    graph = graph_of(names["Shop"])
    assert sentences(graph) == ["ask → computed by the code ask()"]


def test_a_target_that_does_not_exist_is_shown_as_that():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            return goto("shipp")

    graph = graph_of(Shop)
    assert sentences(graph) == ["ask → shipp no step"]
    assert graph.notes == ("The step ask names shipp, which the workflow does not have.",)


def test_paths_end_as_the_run_does():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            return fail("no") if self.context.following else complete()

        @on_fail
        def refund(self, error):
            return goto(self.undo)

        @on_cancel
        def tell(self):
            self.context.following = ""

        @step
        def undo(self):
            return complete()

    graph = graph_of(Shop, deadline=timedelta(days=1), cancel_on=[On("order_cancelled", match={})])
    assert sentences(graph) == [
        "ask → refund @on_fail (fails: no)",
        "ask → Completed",
        "refund @on_fail → undo",
        "tell @on_cancel → Cancelled",
        "undo → Failed",
        "a step fails for good, or after 1 d at any step → refund @on_fail",
        "order_cancelled cancels the run, at any step → tell @on_cancel",
    ]


def test_a_wait_that_is_declared_above_a_step_comes_before_it():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            return goto(self.ship)

        @wait_for_event("parcel_packed", timedelta(days=1), on_timeout="ask")
        @step()
        def ship(self):
            return complete()

    assert sentences(graph_of(Shop)) == [
        "parcel_packed waits for the event → ship",
        "parcel_packed waits for the event → ask (after 1 d)",
        "ask → parcel_packed waits for the event",
        "ship → Completed",
    ]


def test_what_starts_it_is_shown():
    @schedule(timedelta(hours=1), arguments={})
    @event_workflow("order_paid", offset=timedelta(hours=-3), name="shop", deadline=timedelta(days=2))
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            return complete()

    graph = graph_named("shop", kind="workflow")
    assert graph.sentences() == ["order_paid 3 hours before → ask", "shop schedule → ask", "ask → Completed"]
    assert graph.notes == ("A run that has not ended after 2 d fails.",)


@pytest.mark.parametrize("version", ["1", "2"])
def test_each_version_has_its_graph(version):
    for number in ("1", "2"):

        class Shop(Clean):
            pass

        workflow("shop", version=number)(Shop)
    assert graph_named("shop", version=version).title == f"Workflow shop, version {version}"


def test_equal_outcomes_are_one():
    class Shop:
        Context = Empty

        @step(start=True)
        def ask(self):
            if self.context.following:
                return wait(ANSWER)
            return wait(ANSWER)

    graph_of(Shop)
    definition = Shop.__dict__["__workflow__"]
    assert len(outcomes_of(definition)["ask"]) == 1
