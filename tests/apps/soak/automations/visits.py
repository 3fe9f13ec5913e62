"""Subscribers to the dates of visits, half a year before them on the wall clock of their hall: in most time zones an
hour earlier or later than in others, because one of the two moments is in summer."""

from __future__ import annotations

from dateutil.relativedelta import relativedelta
from pydantic import BaseModel

from django_ai.automation import complete, event_workflow, on_event, step

from ..models import Effect
from .things import RETRY, ToldToFail

AHEAD = relativedelta(days=-182)


@on_event("visit_due", offset=AHEAD, name="visit:ahead", retry=RETRY)
def ahead(event):
    Effect.objects.create(owner=f"{event.entity.name}:visit", key="ahead", serial=event.pk)
    if event.executions.get(callback="visit:ahead").attempt < event.pk % 3:
        raise ToldToFail


@event_workflow("visit_due", offset=AHEAD, name="visit:planned", default_retry=RETRY)
class Planned:
    class Context(BaseModel):
        visit: str
        event: int
        tries: int = 0

    @classmethod
    def create_context(cls, event):
        return cls.Context(visit=event.entity.name, event=event.pk)

    @step(start=True)
    def prepare(self):
        Effect.objects.create(owner=f"{self.context.visit}:visit", key="planned", serial=self.context.event)
        self.context.tries += 1
        if self.context.tries <= self.context.event % 3:
            raise ToldToFail
        return complete()
