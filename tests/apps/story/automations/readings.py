"""A workflow that collects many events in one window."""

from __future__ import annotations

import json
from datetime import timedelta

from pydantic import BaseModel

from django_ai.automation import Debounce, complete, event_workflow, step
from tests.apps.story.models import Mark


@event_workflow("reading_taken", name="story:readings", debounce=Debounce(timedelta(seconds=6)))
class Readings:
    class Context(BaseModel):
        pks: list[int]

    @classmethod
    def create_context(cls, events):
        return cls.Context(pks=[event.pk for event in events])

    @step(start=True)
    def store(self):
        Mark.objects.create(name="readings", key=json.dumps(self.context.pks)[:200])
        return complete()
