"""Workflows that wait for several things, and what they leave behind."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation.workflows.core import complete, get_wake, step, workflow
from tests.support.rows import leave


class Fields(BaseModel):
    """A Context with a field for each thing that may come."""

    n: int = 0
    text: str = ""
    kind: str = ""
    more: str = ""
    docs_ready: bool = False
    reservation_id: int = 0


def heard() -> str:
    """Return why the step was entered: the reason and the branch of ``wait_any``, or all branches of ``wait_all``."""
    wake = get_wake()
    if wake.branches or wake.reason == "all":
        return " ".join([wake.reason, *(f"{name}={each.reason}" for name, each in wake.branches.items())])
    return f"{wake.reason} {wake.branch}".strip()


def chooser(outcome, name="chooser", again=False, **options):
    """Declare a workflow that returns ``outcome(self)`` once (or always, with ``again``), leaves what it has heard, and
    completes."""

    @workflow(name, **options)
    class Chooser:
        Context = Fields

        @step(start=True)
        def first(self):
            if get_wake().reason != "first":
                leave(f"first: {heard()}")
                if not again:
                    return complete()
            return outcome(self)

        @step()
        def then(self):
            leave(f"then: {heard()}")
            return complete()

        @step()
        def other(self):
            leave(f"other: {heard()}")
            return complete()

    return Chooser
