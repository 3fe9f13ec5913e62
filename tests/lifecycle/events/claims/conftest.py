"""Workflows for the tests of claims."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from django_ai.automation.workflows.core import complete, step, wait, workflow
from tests.support.claims import UPLOADED, listen


@pytest.fixture(autouse=True)
def holders():
    """Define ``holder``, which runs until the signal ``end``, and ``listener``, which starts for every document."""

    @workflow("holder")
    class Holder:
        class Context(BaseModel):
            pass

        @step(start=True)
        def first(self):
            return wait("end", then=self.last)

        @step()
        def last(self):
            return complete()

    listen(UPLOADED, "listener")
