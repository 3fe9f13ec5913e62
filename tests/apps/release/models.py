"""Two releases of one small project, for the tests that run old and new code on one database.

``TEST_RELEASE`` selects the release of a process: "old" (default) or "new". The table is the same in both.
"""

from __future__ import annotations

import os

from django.db import models

from django_ai.automation.events.definitions import EventDefinition

RELEASE = os.environ.get("TEST_RELEASE", "old")


class Order(models.Model):
    name = models.CharField(max_length=100)
    placed = models.BooleanField(default=False)
    archived = models.BooleanField(default=False)
    rated = models.BooleanField(default=False)

    events = [EventDefinition("order_placed", condition=lambda order: order.placed)]
    if RELEASE == "old":
        events.append(EventDefinition("order_archived", condition=lambda order: order.archived))
    else:
        events.append(EventDefinition("order_rated", condition=lambda order: order.rated))

    def __str__(self) -> str:
        return self.name
