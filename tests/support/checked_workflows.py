"""Workflows that ``manage.py check`` inspects."""

from __future__ import annotations

from pydantic import BaseModel

from django_ai.automation.workflows import checks as workflow_checks
from django_ai.automation.workflows.core import complete, event_workflow, step, workflow


def only(found):
    (problem,) = found
    return problem


class Empty(BaseModel):
    pass


class Titled(BaseModel):
    title: str = ""


def flow(first, name="checked", event=None, offset=None, context=Empty):
    @step()
    def finish(self):
        return complete()

    def helper(self):
        pass

    first.__name__ = "first"
    body = {"Context": context, "first": step(start=True)(first), "finish": finish, "helper": helper}
    cls = type("Checked", (), {**body, "__module__": __name__})
    return (event_workflow(event, offset=offset, name=name) if event else workflow(name))(cls)


def check_workflows(app_configs):
    """Return the problems without W206, which most steps here cause because they only wait (scenario 54)."""
    return [problem for problem in workflow_checks.check_workflows(app_configs) if problem.id != "automation.W206"]
