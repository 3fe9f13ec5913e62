"""Webhooks in: what is forged, old, repeated or broken off does nothing, and says so; what is accepted is committed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.http import HttpRequest
from django.test import Client, override_settings
from django.test.client import RequestFactory
from django.urls import path

from django_ai.automation import FreeEvent, emit
from django_ai.automation.contrib.webhooks import (
    Delivery,
    ForgedError,
    HmacSignature,
    StandardWebhooks,
    StripeSignature,
    Verified,
    webhook_view,
)
from django_ai.automation.contrib.webhooks import view as view_module
from django_ai.automation.events.models import Event
from django_ai.automation.exceptions import DefinitionError, UnknownEventError
from tests.support.free_events import Payment, hear
from tests.support.race import OtherThread
from tests.support.rows import effects

standardwebhooks = pytest.importorskip("standardwebhooks", reason="the extra [webhooks] is not installed")
pytestmark = pytest.mark.django_db(transaction=True)

SECRET, OLD_SECRET = ("whsec_" + base64.b64encode(bytes([byte] * 24)).decode() for byte in (1, 2))
PLAIN_SECRET = "a secret of the endpoint"
MINUTE = timedelta(minutes=1)
BODY = {"order_id": 7, "type": "sold"}

urlpatterns: list[Any] = []


@pytest.fixture(autouse=True)
def urls():
    with override_settings(ROOT_URLCONF=__name__):
        yield
    urlpatterns.clear()


def serve(event: Any = None, **options: Any) -> FreeEvent:
    """Serve a webhook at /hook/; return its event."""
    event = event or FreeEvent("shop:*")
    options = {"verifier": StandardWebhooks(SECRET), **options}
    view = webhook_view(event, **options)
    urlpatterns[:] = [path("hook/", view), path("<slug:tenant>/", view)]
    return event


def signed(body: bytes, message: str = "msg_1", at: datetime | None = None, secret: str = SECRET) -> dict[str, str]:
    """Return the headers of a request, as the sender makes them."""
    at = at or datetime.now(UTC)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": standardwebhooks.Webhook(secret).sign(message, at, body.decode("utf-8", "replace")),
    }


def post(body: Any = BODY, headers: dict[str, str] | None = None, url: str = "/hook/", **options: Any) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    found = signed(raw, **options) if headers is None else headers
    return client.post(url, raw, content_type="application/json", headers=found)


def answer(response: Any) -> tuple[int, str]:
    return response.status_code, response.json().get("error") or response.json()["status"]


# -- accepted ----------------------------------------------------------------------------------------------------------


def test_a_message_is_emitted(work):
    serve()
    hear("shop:sold")
    assert answer(post()) == (200, "accepted")
    event = Event.objects.get()
    assert (event.event_name, event.declared_as, event.key, event.payload) == ("shop:sold", "shop:*", "msg_1", BODY)
    assert event.status == "processed"
    work()
    assert effects() == [f"heard {BODY}"]


@pytest.mark.parametrize("is_atomic", [True, False])
def test_it_is_committed_before_the_answer(monkeypatch, is_atomic):
    """Also under ATOMIC_REQUESTS, whose transaction would end after the view."""
    serve()
    seen = []

    def looking(*args: Any, **options: Any) -> Any:
        event = emit(*args, **options)
        seen.append((connection.in_atomic_block, Event.objects.filter(pk=event.pk).exists()))
        return event

    monkeypatch.setattr(view_module, "emit", looking)
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", is_atomic)
    assert answer(post()) == (200, "accepted")
    assert seen == [(False, True)]


def test_one_event_for_all_types_and_a_schema():
    serve(FreeEvent("sold", payload=Payment))
    assert answer(post({"order_id": "7", "type": "whatever"})) == (200, "accepted")
    assert Event.objects.get().payload == {"order_id": 7, "cents": 0}
    response = post({"type": "sold"}, message="msg_2")
    assert answer(response) == (400, "malformed")
    assert response.json()["detail"] == "The payload does not fit the event: order_id: Field required."


def test_functions_decide_the_event_the_payload_and_the_namespace():
    FreeEvent("sold")

    def event_of(delivery: Delivery) -> str | None:
        assert (delivery.id[:4], delivery.type, delivery.body) == ("msg_", "", json.dumps(delivery.data).encode())
        return delivery.data["kind"]

    serve(event_of, payload=lambda delivery: {"n": delivery.data["n"]}, namespace=lambda each: each.kwargs["tenant"])
    assert answer(post({"kind": "sold", "n": 1}, url="/north/")) == (200, "accepted")
    assert answer(post({"kind": None}, url="/north/", message="msg_2")) == (200, "ignored")
    event = Event.objects.get()
    assert (event.event_name, event.payload, event.namespace) == ("sold", {"n": 1}, "north")


def test_a_body_that_is_no_json(work):
    serve(FreeEvent("sold"), payload=lambda delivery: {"text": delivery.body.decode()}, namespace="north")
    assert answer(post(b"a=1&b=2")) == (200, "accepted")
    assert Event.objects.get().payload == {"text": "a=1&b=2"}


def test_a_name_that_nothing_declares_is_an_error_of_ours():
    """500, and the sender tries again: nothing is lost by a mistake here."""
    serve(lambda delivery: "unknown")
    raw = json.dumps(BODY).encode()
    with pytest.raises(UnknownEventError):
        Client().post("/hook/", raw, content_type="application/json", headers=signed(raw))
    assert post().status_code == 500


# -- repeated ----------------------------------------------------------------------------------------------------------


def test_a_second_delivery_is_answered_and_does_nothing(work):
    serve()
    hear("shop:*")
    for _ in range(3):
        assert answer(post()) == (200, "accepted")
        work()
    assert effects() == [f"heard {BODY}"]
    assert answer(post(message="msg_2")) == (200, "accepted")
    work()
    assert len(effects()) == 2


def test_two_deliveries_at_once(work):
    serve()
    hear("shop:*")
    answers = [OtherThread(lambda: answer(post())) for _ in range(5)]
    assert [each.join() for each in answers] == [(200, "accepted")] * 5
    work()
    assert effects() == [f"heard {BODY}"]


def test_a_delivery_that_was_cut_off_before_the_commit_is_repeated(work, monkeypatch):
    serve()
    hear("shop:*")
    with monkeypatch.context() as patch:
        patch.setattr(connection, "_commit", lambda: (_ for _ in ()).throw(OperationalError("the server is gone")))
        response = post()
    assert answer(response) == (503, "unavailable")
    assert response["Retry-After"] == "60"
    connection.close()
    assert not Event.objects.exists()
    assert answer(post()) == (200, "accepted")
    work()
    assert effects() == [f"heard {BODY}"]


def test_a_failure_inside_a_transaction_around_the_view_is_raised(monkeypatch):
    serve()

    def fails(*args: Any, **options: Any) -> Any:
        raise OperationalError("the server is gone")

    monkeypatch.setattr(view_module, "emit", fails)
    assert answer(post()) == (503, "unavailable")
    with transaction.atomic():
        assert post().status_code == 500


# -- refused -----------------------------------------------------------------------------------------------------------


def test_a_body_that_was_changed():
    serve()
    headers = signed(json.dumps(BODY).encode())
    assert answer(post({**BODY, "order_id": 8}, headers)) == (401, "forged")
    assert answer(post(BODY, {**headers, "webhook-id": "msg_2"})) == (401, "forged")
    for signature in ("v1,bm90IGl0", "v1,!", "nonsense", "v2,abc", "v1", "v1,é", " "):
        assert answer(post(BODY, {**headers, "webhook-signature": signature}))[0] in (400, 401)
    assert not Event.objects.exists()


def test_a_secret_of_somebody_else():
    serve()
    assert answer(post(secret=OLD_SECRET)) == (401, "forged")
    serve(verifier=StandardWebhooks(SECRET, OLD_SECRET))
    assert answer(post(secret=OLD_SECRET)) == (200, "accepted")


@pytest.mark.parametrize("by", [-6 * MINUTE, 6 * MINUTE])
def test_a_signature_that_is_not_of_now(by):
    serve()
    assert answer(post(at=datetime.now(UTC) + by)) == (400, "outdated")
    assert answer(post(at=datetime.now(UTC) + by / 2)) == (200, "accepted")
    assert Event.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"webhook-id": ""}, (400, "malformed")),
        ({"webhook-timestamp": ""}, (400, "malformed")),
        ({"webhook-timestamp": "yesterday"}, (400, "malformed")),
        ({"webhook-timestamp": "nan"}, (400, "malformed")),
        ({"webhook-timestamp": "inf"}, (400, "malformed")),
        ({"webhook-timestamp": "1e99"}, (400, "malformed")),
        ({"webhook-signature": ""}, (400, "malformed")),
    ],
)
def test_headers_that_are_missing_or_wrong(change, expected):
    serve()
    assert answer(post(BODY, {**signed(json.dumps(BODY).encode()), **change})) == expected
    assert answer(post(BODY, {})) == (400, "malformed")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1]",
        b'"text"',
        b"{}",
        b'{"type": 5}',
        b'{"type": ""}',
        b'{"type": "a*"}',
        b'{"type": "a\\u0000"}',
        b'{"type": "\\ud800"}',
        b'{"type": "a", "x": NaN}',
        b'{"type": "a", "x": "\\u0000"}',
        b"[" * 100_000,
        json.dumps({"type": "x" * 101}).encode(),
    ],
)
def test_a_body_that_cannot_be_read(body):
    serve()
    assert answer(post(body)) == (400, "malformed")
    assert not Event.objects.exists()


def test_an_id_that_no_key_can_be():
    serve()
    assert answer(post(message="x" * 256)) == (400, "malformed")
    assert answer(post(message="x" * 255)) == (200, "accepted")


def test_a_body_that_is_too_large(settings):
    serve(max_bytes=1000)
    body = {**BODY, "text": "x" * 1000}
    assert answer(post(body)) == (413, "too_large")
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    assert answer(post({**BODY, "text": "x" * 200})) == (413, "too_large")
    raw = json.dumps(body).encode()
    request = RequestFactory().post("/hook/", raw, content_type="application/json", headers=signed(raw))
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = None
    request.META["CONTENT_LENGTH"] = ""
    request._body = raw
    assert urlpatterns[0].callback(request).status_code == 413


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete", "head", "options"])
def test_another_method(method):
    serve()
    response = getattr(Client(), method)("/hook/")
    assert (response.status_code, response["Allow"]) == (405, "POST")


def test_no_login_and_no_csrf_token_are_needed():
    event = serve()
    view = webhook_view(event, verifier=StandardWebhooks(SECRET))
    assert (view.csrf_exempt, view.login_required) == (True, False)


# -- other schemes -----------------------------------------------------------------------------------------------------


def stripe(body: bytes, at: datetime, secret: str = PLAIN_SECRET) -> dict[str, str]:
    seconds = int(at.timestamp())
    made = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={seconds},v1=00,v1={made},v0=old"}


def test_stripe():
    serve(FreeEvent("stripe:*"), verifier=StripeSignature("another", PLAIN_SECRET))
    body, now = json.dumps({"id": "evt_1", "type": "charge.failed"}).encode(), datetime.now(UTC)
    for _ in range(2):
        assert answer(post(body, stripe(body, now))) == (200, "accepted")
    event = Event.objects.get()
    assert (event.event_name, event.key) == ("stripe:charge.failed", "evt_1")
    assert answer(post(body, stripe(body, now, "wrong"))) == (401, "forged")
    assert answer(post(body, stripe(body, now - 6 * MINUTE))) == (400, "outdated")
    assert answer(post(body, {"Stripe-Signature": "nonsense"})) == (400, "malformed")
    assert answer(post(body, {})) == (400, "malformed")
    for body in (b'{"type": "x"}', b"[]", b"{"):
        assert answer(post(body, stripe(body, now))) == (400, "malformed")


@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_an_hmac_of_the_body(encoding):
    verifier = HmacSignature(
        PLAIN_SECRET, header="X-Signature", prefix="sha256=", encoding=encoding, type_header="X-Kind"
    )
    serve(FreeEvent("hub:*"), verifier=verifier)
    body = b'{"a": 1}'
    made = hmac.new(PLAIN_SECRET.encode(), body, hashlib.sha256).digest()
    text = made.hex() if encoding == "hex" else base64.b64encode(made).decode()
    headers = {"X-Signature": f"sha256={text}", "X-Kind": "push"}
    for _ in range(2):
        assert answer(post(body, headers)) == (200, "accepted")
    event = Event.objects.get()
    assert (event.event_name, event.key) == ("hub:push", f"sha256:{hashlib.sha256(body).hexdigest()}")
    assert answer(post(b'{"a": 2}', headers)) == (401, "forged")
    assert answer(post(body, {**headers, "X-Signature": text})) == (401, "forged")
    assert answer(post(body, {"X-Kind": "push"})) == (400, "malformed")
    assert answer(post(body, {"X-Signature": f"sha256={text}"})) == (400, "malformed")


def test_a_verifier_of_ones_own():
    class Token:
        def verify(self, request: HttpRequest, body: bytes) -> Verified:
            if request.headers.get("X-Token") != "right":
                raise ForgedError
            return Verified(json.loads(body)["id"], "sold")

    serve(verifier=Token())
    assert answer(post({"id": "1"}, {"X-Token": "wrong"})) == (401, "forged")
    assert answer(post({"id": "1"}, {"X-Token": "right"})) == (200, "accepted")
    assert answer(post({"id": 5}, {"X-Token": "right"})) == (400, "malformed")
    assert Event.objects.get().event_name == "shop:sold"


# -- wrong arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"event": "sold"}, "give a FreeEvent, or a function"),
        ({"event": "a:*:*"}, "only one"),
        ({"verifier": "secret"}, "must have a method verify"),
        ({"payload": {}}, "must be a function of the delivery"),
        ({"namespace": ""}, "must be a string or a function"),
        ({"max_bytes": 0}, "1 or more"),
        ({"max_bytes": "1"}, "1 or more"),
    ],
)
def test_wrong_arguments_are_refused_at_import(arguments, problem):
    if arguments.get("event") == "a:*:*":
        arguments = {"event": FreeEvent("a:*:*")}
    given = {"event": FreeEvent("sold"), "verifier": StandardWebhooks(SECRET), **arguments}
    with pytest.raises(DefinitionError, match=problem):
        webhook_view(given.pop("event"), **given)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: StandardWebhooks(), "needs a secret"),
        (lambda: StandardWebhooks(""), "needs a secret"),
        (lambda: StandardWebhooks("whsec_"), "a secret of 0 bytes is too short"),
        (lambda: StandardWebhooks("swordfish!"), "a secret has characters that are not base64"),
        (lambda: StandardWebhooks(SECRET, "swordfish"), r"a secret of 6 bytes is too short\. .* whsec_ and 24 to 64"),
        (lambda: StripeSignature(), "needs a secret"),
        (lambda: StripeSignature("x", tolerance=5), "positive timedelta"),
        (lambda: StripeSignature("x", tolerance=timedelta(0)), "positive timedelta"),
        (lambda: HmacSignature("x", header=""), "name of a header"),
        (lambda: HmacSignature("x", header="X", type_header=5), "name of a header"),
        (lambda: HmacSignature("x", header="X", encoding="utf"), '"hex" or "base64"'),
    ],
)
def test_wrong_secrets_are_refused_and_not_shown(make, problem):
    with pytest.raises(DefinitionError, match=problem) as caught:
        make()
    assert "swordfish" not in str(caught.value)


def test_the_library_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "standardwebhooks", None)
    with pytest.raises(ImportError, match=r"pip install \"django-ai-automation\[webhooks\]\""):
        StandardWebhooks(SECRET)
