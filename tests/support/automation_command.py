"""Calls ``manage.py automation`` in the process of the test, as a shell sees it: what it prints, and its exit code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import StringIO
from typing import Any

from django.core.management import CommandError, call_command


@dataclass(frozen=True)
class Answer:
    """What the command has printed, and its exit code."""

    out: str
    err: str
    code: int

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def automation(*arguments: object) -> Answer:
    out, err, code = StringIO(), StringIO(), 0
    try:
        call_command("automation", *map(str, arguments), stdout=out, stderr=err)
    except CommandError as error:
        err.write(f"{error}\n")
        code = error.returncode
    return Answer(out.getvalue(), err.getvalue(), code)
