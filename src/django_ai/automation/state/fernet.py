"""``FernetCodec``: Contexts encrypted with AES and authenticated with HMAC, as the package ``cryptography`` does it
(https://cryptography.io/en/latest/fernet/), with keys that can be rotated."""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from ..conf import conf
from ..exceptions import DecryptionError, SettingsError

PURPOSE = b"django_ai.automation: Contexts"
MIN_KEY_LENGTH = 32


class FernetCodec:
    """Encrypts with the first key of ``AUTOMATION["CONTEXT_KEYS"]`` and decrypts with all of them.

    Keys are secret strings of at least 32 characters; the encryption keys are derived from them (HKDF, SHA-256). The
    default keys are ``SECRET_KEY`` and ``SECRET_KEY_FALLBACKS``.
    """

    def __init__(self) -> None:
        keys: tuple[str | bytes, ...] = conf().CONTEXT_KEYS or (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
        if short := [number for number, key in enumerate(keys, 1) if len(key) < MIN_KEY_LENGTH]:
            raise SettingsError(
                f"AUTOMATION['CONTEXT_KEYS']: key number {short[0]} has fewer than {MIN_KEY_LENGTH} characters; "
                "django.core.management.utils.get_random_secret_key() generates a valid one."
            )
        self._fernet = MultiFernet([Fernet(_derived(key)) for key in keys])

    def encode(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode()

    def decode(self, text: str) -> str:
        try:
            return self._fernet.decrypt(text).decode()
        except InvalidToken:
            raise DecryptionError("it was encrypted with another key, or changed afterwards") from None


def _derived(key: str | bytes) -> bytes:
    secret = key.encode() if isinstance(key, str) else key
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=PURPOSE).derive(secret)
    return base64.urlsafe_b64encode(derived)
