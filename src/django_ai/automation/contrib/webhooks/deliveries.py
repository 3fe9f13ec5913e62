"""``Delivery``: one verified request; and the errors that refuse a request, each with its HTTP status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from django.http import HttpRequest

from django_ai.automation.exceptions import AutomationError


class DeliveryError(AutomationError):
    """The request is refused."""

    status: ClassVar[int] = 400
    """The HTTP status of the answer."""
    code: ClassVar[str] = "refused"
    """What the answer has as ``error``."""


class MalformedError(DeliveryError):
    """The request lacks something, or it cannot be read."""

    code = "malformed"


class ForgedError(DeliveryError):
    """No signature of the request was made with the secret."""

    status = 401
    code = "forged"


class OutdatedError(DeliveryError):
    """The request was signed too long ago, or in the future."""

    code = "outdated"


class TooLargeError(DeliveryError):
    """The body of the request is too large."""

    status = 413
    code = "too_large"


@dataclass(frozen=True)
class Delivery:
    """One verified request of another service.

    Attributes:
        id: The identity of the message, a string: a second request with the same one records nothing.
        type: What kind of message it is, a string, as the sender calls it; may be empty.
        body: The bytes that were signed.
        request: The ``HttpRequest``. Its headers need not be signed: do not rely on them.
        kwargs: What the URL pattern has captured, a dict.

    Example:
        Ignore what is not a payment::

            def event_of(delivery):
                return PAYMENT_RECEIVED if delivery.data["kind"] == "payment" else None
    """

    id: str
    type: str
    body: bytes
    request: HttpRequest
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def data(self) -> Any:
        """The body, read as JSON. Raises ``MalformedError`` if it is no JSON."""
        return read_json(self.body)


def read_json(body: bytes) -> Any:
    """Return ``body`` as a JSON value. Raises ``MalformedError``."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"The body is no JSON: {error}.") from None
