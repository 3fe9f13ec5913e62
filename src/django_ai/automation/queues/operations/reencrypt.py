"""Writes encrypted columns again, after a key was rotated or the codec was turned on or off.

Each write is fenced on ``seq``: a value that a worker commits in the meantime is newer, and encrypted with the current
key. Rows of a history are never changed, and have none.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.db import models, transaction
from django.db.models import F, Value

from ...db.writer import alias_of
from ...state.encryption import EncryptedJSONField, Unreadable
from ..history import note_key
from ..registry import encrypted_histories, wakeables
from ..wakeable import Wakeable


def reencrypt(batch: int) -> Iterator[tuple[str, str, int, int]]:
    """Encrypt every column again, ``batch`` rows per transaction.

    Yields the model, the column, how many rows were written and how many could not be read. The history gets an entry
    for each column of which rows were written, also if this is interrupted.
    """
    for model in (*wakeables(), *encrypted_histories()):
        for field in model._meta.concrete_fields:
            if isinstance(field, EncryptedJSONField):
                column = field.attname
                yield model._meta.label, column, *_reencrypt_column(model, column, batch)


def _reencrypt_column(model: type[models.Model], column: str, batch: int) -> tuple[int, int]:
    written = unreadable = 0
    try:
        for more_written, more_unreadable in _reencrypt(model, column, batch):
            written, unreadable = written + more_written, unreadable + more_unreadable
    finally:
        if written:
            note_key(model, column, f"{model._meta.label}.{column}, {written:,} rows", "Encrypted")
    return written, unreadable


def _reencrypt(model: type[models.Model], column: str, batch: int) -> Iterator[tuple[int, int]]:
    alias, after = alias_of(model), 0
    has_seq = issubclass(model, Wakeable)
    fence = F("seq") if has_seq else Value(0)
    while True:
        rows = model._base_manager.using(alias)
        found = list(rows.filter(pk__gt=after).order_by("pk").values_list("pk", fence, column)[:batch])
        if not found:
            return
        after, written, unreadable = found[-1][0], 0, 0
        with transaction.atomic(using=alias):
            for pk, seq, value in found:
                if isinstance(value, Unreadable):
                    unreadable += 1
                elif value:
                    mine = rows.filter(pk=pk, seq=seq) if has_seq else rows.filter(pk=pk)
                    written += mine.update(**{column: value})
        yield written, unreadable
