"""Signatures: who verifies that a request comes from whom it says, and is not an old one sent again.

A ``Verifier`` is any object with a method ``verify(request, body)``: write one for a scheme that is not here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from django.http import HttpRequest
from django.utils import timezone

from django_ai.automation.exceptions import DefinitionError

from .deliveries import ForgedError, MalformedError, OutdatedError, read_json

INSTALL = 'Install it with: pip install "django-ai-automation[webhooks]"'

MIN_SECRET_BYTES = 16

TOLERANCE = timedelta(minutes=5)
"""How far the time of a signature may be from now: that of the library ``standardwebhooks``, and of Stripe."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verifier has found in a request whose signature is right.

    Args:
        id: The identity of the message, a string of 1 to 255 characters. Take it from what is signed: an attacker could
            replace anything else, and send the message again.
        type: What kind of message it is, a string. Default: empty; the member ``type`` of the body is used.

    Example:
        What a verifier returns::

            return Verified(id=data["id"], type=data["kind"])
    """

    id: str
    type: str = ""


class Verifier(Protocol):
    """Anything that verifies the requests of one sender.

    Example:
        A sender that puts a shared token into a header, and an id into the body::

            class Token:
                def verify(self, request, body):
                    if not hmac.compare_digest(request.headers.get("X-Token", ""), settings.TOKEN):
                        raise ForgedError("The token is wrong.")
                    return Verified(id=json.loads(body)["id"])
    """

    def verify(self, request: HttpRequest, body: bytes) -> Verified:
        """Verify a request.

        Args:
            request: The ``HttpRequest``.
            body: Its body, as bytes.

        Returns:
            The identity and the type of the message.

        Raises:
            ForgedError: If the signature is wrong.
            OutdatedError: If it is right, but not of now.
            MalformedError: If something is missing.

        Example:
            Verify a request by hand::

                found = StandardWebhooks(settings.SHOP_SECRET).verify(request, request.body)
        """
        ...


class StandardWebhooks:
    """Verify requests by the Standard Webhooks specification, with the library ``standardwebhooks``.

    The signature covers the id, the time and the body. The time must be within five minutes of now.

    Args:
        *secrets: The shared secret as a string (``"whsec_..."``, or base64 without that prefix). Several while one
            replaces another: any of them verifies.

    Raises:
        ImportError: If the library is not installed.
        DefinitionError: At import, if no secret is given, or one is not valid.

    Example:
        The secret comes from the settings::

            verifier = StandardWebhooks(settings.SHOP_SECRET)
    """

    def __init__(self, *secrets: str) -> None:
        try:
            import standardwebhooks
        except ImportError as error:
            raise ImportError(f"StandardWebhooks needs the package standardwebhooks. {INSTALL}") from error
        _check_secrets("StandardWebhooks", secrets)
        for each in secrets:
            _check_base64(each.removeprefix("whsec_"))
        self._refused: type[Exception] = standardwebhooks.WebhookVerificationError
        self._webhooks = [standardwebhooks.Webhook(each) for each in secrets]

    def verify(self, request: HttpRequest, body: bytes) -> Verified:
        """Verify the headers ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``.

        Args:
            request: The ``HttpRequest``.
            body: Its body, as bytes.

        Returns:
            The identity of the message.

        Raises:
            ForgedError: If no signature was made with one of the secrets.
            OutdatedError: If the time is not within five minutes of now.
            MalformedError: If a header is missing, or the body is not UTF-8.

        Example:
            Verify a request by hand::

                found = StandardWebhooks(settings.SHOP_SECRET).verify(request, request.body)
        """
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        headers = {name: _header(request, name) for name in names}
        _check_time(headers["webhook-timestamp"], "webhook-timestamp", TOLERANCE)
        try:
            body.decode()
        except UnicodeDecodeError:
            raise MalformedError("The body is not UTF-8.") from None
        for webhook in self._webhooks:
            try:
                webhook.verify(body, headers, json_parse=False)
            except (self._refused, ValueError):  # ValueError: a signature that cannot even be read
                continue
            return Verified(headers["webhook-id"])
        raise ForgedError("No signature in webhook-signature was made with the secret.")


class StripeSignature:
    """Verify requests of Stripe: the header ``Stripe-Signature`` signs the time and the body.

    Args:
        *secrets: The endpoint's signing secret as a string. Several while one replaces another.
        tolerance: How far the time of the signature may be from now, as a positive timedelta. Default 5 min.

    Raises:
        DefinitionError: At import, if an argument is invalid.

    Example:
        The secret comes from the settings::

            verifier = StripeSignature(settings.STRIPE_SIGNING_SECRET)
    """

    def __init__(self, *secrets: str, tolerance: timedelta = TOLERANCE) -> None:
        _check_secrets("StripeSignature", secrets)
        if not isinstance(tolerance, timedelta) or tolerance <= timedelta(0):
            raise DefinitionError(f"StripeSignature: tolerance={tolerance!r} must be a positive timedelta.")
        self._keys, self._tolerance = [each.encode() for each in secrets], tolerance

    def verify(self, request: HttpRequest, body: bytes) -> Verified:
        """Verify the header ``Stripe-Signature``. The identity and the type are those of the body.

        Args:
            request: The ``HttpRequest``.
            body: Its body, as bytes.

        Returns:
            The identity and the type of the message.

        Raises:
            ForgedError: If no signature was made with one of the secrets.
            OutdatedError: If the time is further from now than the tolerance.
            MalformedError: If the header or the ``id`` of the body is missing.

        Example:
            Verify a request by hand::

                found = StripeSignature(settings.STRIPE_SIGNING_SECRET).verify(request, request.body)
        """
        parts = [part.strip().partition("=") for part in _header(request, "Stripe-Signature").split(",")]
        signed_at = next((value for name, _, value in parts if name == "t"), "")
        _check_time(signed_at, "Stripe-Signature: t", self._tolerance)
        given = [value for name, _, value in parts if name == "v1"]
        made = [hmac.new(key, signed_at.encode() + b"." + body, hashlib.sha256).hexdigest() for key in self._keys]
        if not _any_equal(given, made):
            raise ForgedError("No signature v1 in Stripe-Signature was made with the secret.")
        data = read_json(body)
        found = data.get("id") if isinstance(data, dict) else None
        if not isinstance(found, str):
            raise MalformedError("The body has no id.")
        return Verified(found)


class HmacSignature:
    """Verify requests whose header has an HMAC-SHA256 of the body and nothing else, as those of GitHub or Shopify.

    Such a signature has no time, and no identity is signed but the body itself: the identity of a message is the digest
    of its body. So a request is never accepted a second time while its event is kept (``RETENTION_EVENTS``), and two
    messages with equal bodies count as one.

    Args:
        *secrets: The shared secret as a string. Several while one replaces another.
        header: Name of the header, as a string: ``"X-Hub-Signature-256"``.
        prefix: What stands before the signature, as a string: ``"sha256="``. Default: nothing.
        encoding: ``"hex"`` or ``"base64"``. Default ``"hex"``.
        type_header: Name of a header with the type of the message, as a string: ``"X-GitHub-Event"``. It is not signed.
            Default: the member ``type`` of the body is used.

    Raises:
        DefinitionError: At import, if an argument is invalid.

    Example:
        GitHub, and Shopify::

            github = HmacSignature(
                settings.GITHUB_SECRET,
                header="X-Hub-Signature-256",
                prefix="sha256=",
                type_header="X-GitHub-Event",
            )
            shopify = HmacSignature(
                settings.SHOPIFY_SECRET,
                header="X-Shopify-Hmac-Sha256",
                encoding="base64",
                type_header="X-Shopify-Topic",
            )
    """

    def __init__(
        self, *secrets: str, header: str, prefix: str = "", encoding: str = "hex", type_header: str | None = None
    ) -> None:
        _check_secrets("HmacSignature", secrets)
        if encoding not in ("hex", "base64"):
            raise DefinitionError(f'HmacSignature: encoding={encoding!r} must be "hex" or "base64".')
        for name, value in (("header", header), ("type_header", type_header or "X")):
            if not isinstance(value, str) or not value:
                raise DefinitionError(f"HmacSignature: {name}={value!r} must be the name of a header.")
        self._keys = [each.encode() for each in secrets]
        self._header, self._prefix, self._encoding, self._type_header = header, prefix, encoding, type_header

    def verify(self, request: HttpRequest, body: bytes) -> Verified:
        """Verify the header.

        Args:
            request: The ``HttpRequest``.
            body: Its body, as bytes.

        Returns:
            The digest of the body as the identity, and the type of the message.

        Raises:
            ForgedError: If the signature was not made with one of the secrets.
            MalformedError: If a header is missing.

        Example:
            Verify a request by hand::

                found = HmacSignature(settings.SECRET, header="X-Signature").verify(request, request.body)
        """
        given = _header(request, self._header)
        digests = [hmac.new(key, body, hashlib.sha256).digest() for key in self._keys]
        made = [each.hex() if self._encoding == "hex" else base64.b64encode(each).decode() for each in digests]
        if not _any_equal([given], [self._prefix + each for each in made]):
            raise ForgedError(f"The signature in {self._header} was not made with the secret.")
        kind = "" if self._type_header is None else _header(request, self._type_header)
        return Verified(f"sha256:{hashlib.sha256(body).hexdigest()}", kind)


def _check_secrets(what: str, secrets: tuple[Any, ...]) -> None:
    if not secrets or not all(isinstance(each, str) and each for each in secrets):
        raise DefinitionError(f"{what} needs a secret, a string that is not empty.")  # without the value


def _check_base64(secret: str) -> None:
    """Raise ``DefinitionError`` for what no sender makes: it would be accepted, and no signature would fit. The message
    does not have the secret."""
    size = len(secret.rstrip("=")) * 3 // 4
    if not re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", secret):
        problem = "a secret has characters that are not base64"
    elif size < MIN_SECRET_BYTES:
        problem = f"a secret of {size} bytes is too short"
    else:
        return
    raise DefinitionError(
        f"StandardWebhooks: {problem}. Copy it as the sender shows it: whsec_ and 24 to 64 random bytes in base64."
    )


def _header(request: HttpRequest, name: str) -> str:
    found = request.headers.get(name)
    if not found:
        raise MalformedError(f"The header {name} is missing.")
    return found


def _check_time(value: str, what: str, tolerance: timedelta) -> None:
    """Raise ``OutdatedError`` unless ``value``, in seconds since 1970, is within ``tolerance`` of now."""
    try:
        signed_at = datetime.fromtimestamp(float(value), UTC)
    except (ValueError, OverflowError, OSError):
        raise MalformedError(f"{what} is no time in seconds.") from None
    now = timezone.now()
    now = now.replace(tzinfo=UTC) if timezone.is_naive(now) else now
    if abs(now - signed_at) > tolerance:
        raise OutdatedError(f"{what} is {signed_at:%Y-%m-%d %H:%M:%S} UTC, more than {tolerance} from now.")


def _any_equal(given: list[str], made: list[str]) -> bool:
    """Return whether one of ``given`` is one of ``made``, in a time that tells nothing about the difference."""
    return any(list(_compare(given, made)))


def _compare(given: list[str], made: list[str]) -> Iterator[bool]:
    for one in given:
        for other in made:
            yield hmac.compare_digest(one.encode(), other.encode())
