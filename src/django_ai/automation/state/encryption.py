"""Sealed columns: Contexts and signals' payloads encrypted on their way to the database, plain again in Python.

``AUTOMATION["CONTEXT_CODEC"]`` names a ``Codec``; ``encryption.FernetCodec`` is one. What it makes of the JSON text is
stored as an envelope, ``{"$sealed": "..."}``, in the same column, so turning it on or off changes no schema: plain
rows are still read, and sealed when they are next written. What cannot be opened (its key is gone, somebody changed it)
comes back as ``Unreadable`` and raises nothing: it must not keep a worker from the other rows of a batch, nor a person
from a list. Whoever needs the Context then parks that one run, with the reason.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Protocol

from django.core.signals import setting_changed
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.module_loading import import_string

from ..conf import conf
from ..exceptions import DecryptionError, SettingsError

ENVELOPE_KEY = "$sealed"
FERNET = "django_ai.automation.state.fernet.FernetCodec"


class Codec(Protocol):
    """Encrypts the text of Contexts. Made once in each process, without arguments; used by all its threads."""

    def encode(self, text: str) -> str:
        """Return ``text`` in a form that only ``decode`` reads; no NUL characters in it."""

    def decode(self, text: str) -> str:
        """Return what ``encode`` was given, now or in an earlier release. May raise anything for what it cannot read;
        the message is shown to people, so it must not tell a secret."""


class Unreadable(dict[str, Any]):
    """An envelope that could not be opened, as it is stored; saved again, it stays as it is."""

    reason: str = ""


@lru_cache(maxsize=1)
def codec() -> Codec | None:
    """Return what new text is sealed with, or None. Raises ``SettingsError`` where there is no such codec."""
    name = conf().CONTEXT_CODEC
    return _load_codec(name) if name else None


@lru_cache(maxsize=1)
def _reading_codec() -> Codec:
    """Return what envelopes are opened with: also after the codec was turned off, if it was ours."""
    return codec() or _load_codec(FERNET)


def _load_codec(name: str) -> Codec:
    try:
        made: Codec = import_string(name)()
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"AUTOMATION['CONTEXT_CODEC'] is {name!r}, which cannot be made ({type(error).__name__}: {error}). Give "
            f"the dotted path of a class with encode() and decode(), for instance {FERNET!r}."
        ) from error
    return made


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in ("AUTOMATION", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        codec.cache_clear()
        _reading_codec.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_ai.automation.sealing")


def encrypt(text: str) -> str:
    """Return JSON ``text`` as it is stored: in an envelope, where a codec is set."""
    with_codec = codec()
    if with_codec is None or text in ("{}", "null"):
        return text
    return json.dumps({ENVELOPE_KEY: with_codec.encode(text)})


def decrypt(value: Any) -> Any:
    """Return what a stored value holds; plain ones are themselves, and what cannot be opened is ``Unreadable``."""
    if not isinstance(value, dict) or value.keys() != {ENVELOPE_KEY}:
        return value
    try:
        return json.loads(_reading_codec().decode(value[ENVELOPE_KEY]))
    except Exception as error:
        found = Unreadable(value)
        found.reason = f"{type(error).__name__}: {error}"
        return found


def check_readable(value: Any, what: str) -> None:
    """Raise ``DecryptionError`` for what could not be opened."""
    if isinstance(value, Unreadable):
        raise DecryptionError(
            f"{what}: what is stored is encrypted, and none of the keys in use opens it ({value.reason}). Give its key "
            "back (AUTOMATION['CONTEXT_KEYS'], or SECRET_KEY_FALLBACKS), then this goes on by itself; if it was never "
            "this project's, somebody has changed the row."
        )


class EncryptedJSONField(models.JSONField):
    """A ``JSONField`` whose values are sealed in the database. Queries cannot look into it."""

    def deconstruct(self) -> Any:
        # The column is that of a JSONField, sealed or not: migrations need not know.
        name, _, arguments, options = super().deconstruct()
        return name, "django.db.models.JSONField", arguments, options

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        if value and isinstance(value, dict | list) and not isinstance(value, Unreadable) and codec() is not None:
            value = json.loads(encrypt(json.dumps(value, cls=self.encoder)))
        return super().get_db_prep_value(value, connection, prepared)

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> Any:
        return decrypt(super().from_db_value(value, expression, connection))
