"""A choice of two events, a signal and a timer, for the test that lets all of them come at about the same time."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import (
    FreeEvent,
    complete,
    get_wake,
    sleep,
    step,
    wait,
    wait_any,
    wait_for_event,
    workflow,
)

from ..models import Mark

PAID = FreeEvent("race:paid")
DECLINED = FreeEvent("race:declined")
CALLED = "race:called"
TIME = timedelta(milliseconds=800)


@workflow("story:race")
class Race:
    class Context(BaseModel):
        number: int

    @step(start=True)
    def wait_for_the_first(self):
        of_this_run = {"number": "{{ ctx.number }}"}
        return wait_any(
            paid=wait_for_event(PAID, match=of_this_run),
            declined=wait_for_event(DECLINED, match=of_this_run),
            called=wait(CALLED),
            late=sleep(TIME),
            then=self.end,
        )

    @step()
    def end(self):
        Mark.objects.create(name=f"race {self.context.number}", key=get_wake().branch)
        return complete()
