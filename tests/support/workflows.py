"""Workflows that a test builds from functions, and their runs."""

from __future__ import annotations

from pydantic import BaseModel, Field

from django_ai.automation.workflows.core import engine, step, workflow
from django_ai.automation.workflows.models import WorkflowRun


def flow(first, name="flow", context=None, version=1, retry=None, **methods):
    """Declare a workflow whose start step is ``first``."""

    class Context(BaseModel):
        n: int = 0
        text: str = ""
        number: float = 0.0
        items: list = Field(default_factory=list)

    first.__name__ = "first"
    body = {
        "Context": context or Context,
        "first": step(start=True)(first),
        "__module__": __name__,
        "__qualname__": f"Flow{version}",
    }
    for title, method in methods.items():
        method.__name__ = title
        is_marked = any(hasattr(method, mark) for mark in ("__on_fail__", "__on_cancel__", "__step__"))
        body[title] = method if is_marked else step()(method)
    return workflow(name, version=version, default_retry=retry)(type("Flow", (), body))


def hook(decorator, body, **options):
    """Return a method of ``decorator`` that takes everything."""

    def method(self, error, run):
        return body(self, error)

    return decorator(**options)(method)


def run(work, name="flow", **arguments) -> WorkflowRun:
    started = engine.start(name, **arguments)
    work()
    started.refresh_from_db()
    return started
