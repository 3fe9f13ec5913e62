"""Webhooks in: a view that verifies a request of another service, and emits it as an event, once.

``view`` answers the request, ``signatures`` verifies it, and ``deliveries`` has what both of them exchange.
"""

from .deliveries import Delivery, DeliveryError, ForgedError, MalformedError, OutdatedError, TooLargeError
from .signatures import HmacSignature, StandardWebhooks, StripeSignature, Verified, Verifier
from .view import webhook_view

__all__ = [
    "Delivery",
    "DeliveryError",
    "ForgedError",
    "HmacSignature",
    "MalformedError",
    "OutdatedError",
    "StandardWebhooks",
    "StripeSignature",
    "TooLargeError",
    "Verified",
    "Verifier",
    "webhook_view",
]
