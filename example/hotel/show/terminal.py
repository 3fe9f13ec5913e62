"""The card terminal of the demo: it sends webhooks, and repeats them, as such services do."""

from __future__ import annotations

import hashlib
import hmac
import json

from django.conf import settings
from django.test import Client

PAID = {"type": "paid", "room": "105", "amount": "14.50"}


def send(body: dict[str, str], secret: str) -> int:
    """Send a webhook, and return the status of its answer."""
    raw = json.dumps(body).encode()
    headers = {"X-Terminal-Signature": hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()}
    client = Client(SERVER_NAME="localhost")
    return client.post("/hooks/terminal/", raw, content_type="application/json", headers=headers).status_code


def report_a_payment() -> list[int]:
    """Report one payment twice, and let somebody forge another one."""
    secret = settings.TERMINAL_SECRET
    return [send(PAID, secret), send(PAID, secret), send({**PAID, "amount": "0"}, "a guess")]
