"""The database's own clock, in SQL and as an expression: machines may differ about the time."""

from __future__ import annotations

from typing import Any

from django.db import models

DATABASE_NOW_SQL = {
    "postgresql": "clock_timestamp()",
    "sqlite": "strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now')",
    "mysql": "UTC_TIMESTAMP(6)",
}


class DatabaseNow(models.Expression):
    """The database's own clock. Django's ``Now`` is the start of the transaction on PostgreSQL."""

    def __init__(self) -> None:
        super().__init__(output_field=models.DateTimeField())

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[str | int, ...]]:
        return DATABASE_NOW_SQL[connection.vendor], ()
