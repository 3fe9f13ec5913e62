"""Encrypted columns: Contexts and payloads of signals are encrypted in the database and plain in Python.

``AUTOMATION["CONTEXT_CODEC"]`` names a ``Codec``, for instance ``fernet.FernetCodec``. The encrypted JSON text is
stored in an envelope, ``{"$sealed": "..."}``, in the same column, so switching it on or off changes no schema: plain
rows are still read, and are encrypted when they are next written. A value that cannot be decrypted (its key is missing,
or the row was tampered with) is returned as ``Unreadable`` and raises nothing: it must not stop a worker from
performing other rows of a batch, nor an operator from viewing a list. Code that needs the Context parks that one run,
with the reason.
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
    """Encrypts the JSON text of Contexts. Created once per process, without arguments, and used by all its threads."""

    def encode(self, text: str) -> str:
        """Return ``text`` encrypted, without NUL characters."""

    def decode(self, text: str) -> str:
        """Return the text that ``encode`` encrypted, now or in an earlier release. May raise any exception if it cannot
        decrypt; its message is shown to operators, so it must not contain a secret."""


class Unreadable(dict[str, Any]):
    """An envelope that could not be decrypted, as it is stored. Saving it again does not change it."""

    reason: str = ""


@lru_cache(maxsize=1)
def codec() -> Codec | None:
    """Return the codec that encrypts, or None. Raises ``SettingsError`` if it cannot be created."""
    name = conf().CONTEXT_CODEC
    return _load_codec(name) if name else None


@lru_cache(maxsize=1)
def _reading_codec() -> Codec:
    """Return the codec that decrypts; ``FernetCodec`` after encryption was switched off."""
    return codec() or _load_codec(FERNET)


def _load_codec(name: str) -> Codec:
    try:
        made: Codec = import_string(name)()
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"AUTOMATION['CONTEXT_CODEC'] is {name!r}, which cannot be created ({type(error).__name__}: {error}). Give "
            f"the dotted path of a class with encode() and decode(), for instance {FERNET!r}."
        ) from error
    return made


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in ("AUTOMATION", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        codec.cache_clear()
        _reading_codec.cache_clear()


setting_changed.connect(_forget, dispatch_uid="django_ai.automation.encryption")


def encrypt(text: str) -> str:
    """Return JSON ``text`` as it is stored: encrypted in an envelope, if a codec is set."""
    with_codec = codec()
    if with_codec is None or text in ("{}", "null"):
        return text
    return json.dumps({ENVELOPE_KEY: with_codec.encode(text)})


def decrypt(value: Any) -> Any:
    """Return a stored value decrypted. A plain one is returned unchanged; one that cannot be decrypted becomes
    ``Unreadable``."""
    if not isinstance(value, dict) or value.keys() != {ENVELOPE_KEY}:
        return value
    try:
        return json.loads(_reading_codec().decode(value[ENVELOPE_KEY]))
    except Exception as error:
        unreadable = Unreadable(value)
        unreadable.reason = f"{type(error).__name__}: {error}"
        return unreadable


def check_readable(value: Any, what: str) -> None:
    """Raise ``DecryptionError`` if ``value`` could not be decrypted."""
    if isinstance(value, Unreadable):
        raise DecryptionError(
            f"{what}: the stored value is encrypted, and none of the configured keys decrypts it ({value.reason}). Add "
            "its key to AUTOMATION['CONTEXT_KEYS'] or SECRET_KEY_FALLBACKS; then it resumes automatically. If the key "
            "was never one of this project, the row has been tampered with."
        )


class EncryptedJSONField(models.JSONField):
    """A ``JSONField`` whose values are encrypted in the database. Queries cannot filter by them."""

    def deconstruct(self) -> Any:
        # The column is that of a JSONField, encrypted or not, so migrations do not mention encryption.
        name, _, arguments, options = super().deconstruct()
        return name, "django.db.models.JSONField", arguments, options

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        if value and isinstance(value, dict | list) and not isinstance(value, Unreadable) and codec() is not None:
            value = json.loads(encrypt(json.dumps(value, cls=self.encoder)))
        return super().get_db_prep_value(value, connection, prepared)

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> Any:
        return decrypt(super().from_db_value(value, expression, connection))
