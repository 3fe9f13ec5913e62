"""``webhook_view``: the view that answers the requests of one sender.

It verifies the request, and emits an event under the identity of the message. ``emit`` commits before the answer is
sent; the view takes no part in ``ATOMIC_REQUESTS``, whose transaction would commit later. Who sent the request repeats
it until it gets a 2xx, so a process that dies before its commit loses nothing; and because the identity is the key of
the event, a repetition records nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.request import UnreadablePostError
from django.views.decorators.csrf import csrf_exempt
from pydantic import ValidationError

from django_ai.automation import FreeEvent, emit
from django_ai.automation.exceptions import DefinitionError, NotStorableError

from .deliveries import Delivery, DeliveryError, MalformedError, TooLargeError
from .signatures import Verifier

logger = logging.getLogger("django_ai.automation")

View: TypeAlias = Callable[..., HttpResponse]

MAX_BYTES = 256 * 1024
MAX_ID = 255
MAX_TYPE = 100


def webhook_view(
    event: FreeEvent | Callable[[Delivery], FreeEvent | str | None],
    *,
    verifier: Verifier,
    payload: Callable[[Delivery], Mapping[str, Any]] | None = None,
    namespace: str | Callable[[Delivery], str | None] | None = None,
    max_bytes: int = MAX_BYTES,
) -> View:
    """Return a view that receives the webhooks of one sender, and emits each message as an event, once.

    The view answers 200 after the event was committed, also under ``ATOMIC_REQUESTS``. A message that was received
    before is answered 200, too, and records nothing. Other answers: 400 for a request that is malformed or outdated,
    401 for one that is forged, 413 for one that is too large, and 503 if the database could not be reached, each with
    ``error`` and ``detail`` as JSON; and 405 for a method other than POST.

    The view needs no CSRF token and no login. It is synchronous: under ASGI, Django runs it in a thread.

    Args:
        event: The event to emit, as a ``FreeEvent``. In the name of a family the type of the message replaces ``*``:
            ``FreeEvent("stripe:*")`` becomes ``"stripe:charge.failed"``. Or a function that takes the ``Delivery`` and
            returns a ``FreeEvent``, a name, or None, which acknowledges the message and emits nothing.
        verifier: What verifies the signature: ``StandardWebhooks(secret)``, ``StripeSignature(secret)``,
            ``HmacSignature(secret, ...)``, or an object of yours with a method ``verify(request, body)``.
        payload: A function that takes the ``Delivery`` and returns the payload of the event, a dict. Default: the body,
            which must then be a JSON object.
        namespace: The namespace of the event, as a string, or a function that takes the ``Delivery`` and returns one
            (or None). Default: no namespace.
        max_bytes: The largest body, in bytes. Default 262,144.

    Returns:
        The view, for a URL pattern.

    Raises:
        DefinitionError: At import, if an argument is invalid.

    Example:
        The shop reports what it sells::

            SHOP = FreeEvent("shop:*")

            urlpatterns = [
                path("hooks/shop/", webhook_view(SHOP, verifier=StandardWebhooks(settings.SHOP_SECRET))),
            ]
    """
    _check(event, verifier, payload, namespace, max_bytes)

    def view(request: HttpRequest, **kwargs: Any) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        try:
            body = _read(request, max_bytes)
            found = verifier.verify(request, body)
            delivery = Delivery(_checked_id(found.id), found.type, body, request, kwargs)
            name = event(delivery) if not isinstance(event, FreeEvent) else _name(event, delivery)
            if name is None:
                return JsonResponse({"status": "ignored"})
            values = payload(delivery) if payload is not None else _object(delivery)
            _record(name, values, delivery.id, namespace(delivery) if callable(namespace) else namespace)
        except DeliveryError as error:
            return JsonResponse({"error": error.code, "detail": str(error)}, status=error.status)
        except (OperationalError, InterfaceError):
            if any(each.in_atomic_block for each in connections.all(initialized_only=True)):
                raise  # a transaction around the view, which must be rolled back
            logger.exception("A webhook could not be recorded; its sender is asked to send it again.")
            problem = {"error": "unavailable", "detail": "The message was not recorded. Send it again."}
            return JsonResponse(problem, status=503, headers={"Retry-After": "60"})
        return JsonResponse({"status": "accepted"})

    view.login_required = False  # type: ignore[attr-defined]
    for alias in settings.DATABASES:
        view = transaction.non_atomic_requests(using=alias)(view)
    return csrf_exempt(view)


def _check(event: Any, verifier: Any, payload: Any, namespace: Any, max_bytes: Any) -> None:
    if isinstance(event, FreeEvent):
        if event.name.count("*") > 1:
            raise DefinitionError(f"webhook_view({event!r}): only one '*' can be replaced by the type of a message.")
    elif not callable(event):
        raise DefinitionError(f"webhook_view({event!r}): give a FreeEvent, or a function of the delivery.")
    if not callable(getattr(verifier, "verify", None)):
        raise DefinitionError(
            f"webhook_view: verifier={verifier!r} must have a method verify(request, body): StandardWebhooks(secret)."
        )
    if payload is not None and not callable(payload):
        raise DefinitionError(f"webhook_view: payload={payload!r} must be a function of the delivery.")
    if namespace is not None and not callable(namespace) and not (isinstance(namespace, str) and namespace):
        raise DefinitionError(f"webhook_view: namespace={namespace!r} must be a string or a function of the delivery.")
    if type(max_bytes) is not int or max_bytes < 1:
        raise DefinitionError(f"webhook_view: max_bytes={max_bytes!r} must be a whole number of 1 or more.")


def _read(request: HttpRequest, max_bytes: int) -> bytes:
    """Return the body of the request. Raises ``TooLargeError``, before it is read if its length is known."""
    length = request.META.get("CONTENT_LENGTH") or "0"
    if length.isdecimal() and int(length) > max_bytes:
        raise TooLargeError(f"The body has {int(length):,} bytes, and {max_bytes:,} are allowed.")
    try:
        body = request.body
    except RequestDataTooBig:
        raise TooLargeError("The body is larger than DATA_UPLOAD_MAX_MEMORY_SIZE.") from None
    except UnreadablePostError:
        raise MalformedError("The connection ended before the body was complete.") from None
    if len(body) > max_bytes:
        raise TooLargeError(f"The body has {len(body):,} bytes, and {max_bytes:,} are allowed.")
    return body


def _checked_id(found: Any) -> str:
    if not isinstance(found, str) or not 0 < len(found) <= MAX_ID or not found.isprintable():
        raise MalformedError(f"The id of the message must be a string of 1 to {MAX_ID} printable characters.")
    return found


def _name(event: FreeEvent, delivery: Delivery) -> str | FreeEvent:
    """Return the event to emit; in the name of a family the type of the message replaces ``*``."""
    if "*" not in event.name:
        return event
    kind = delivery.type or (delivery.data.get("type") if isinstance(delivery.data, dict) else None)
    if not isinstance(kind, str) or not 0 < len(kind) <= MAX_TYPE or not kind.isprintable() or "*" in kind:
        raise MalformedError(f"The type of the message must be a string of 1 to {MAX_TYPE} printable characters.")
    return event.name.replace("*", kind)


def _record(event: FreeEvent | str, payload: Mapping[str, Any], key: str, namespace: str | None) -> None:
    """Emit the event, which is committed before this returns. Raises ``MalformedError`` if its payload does not fit."""
    try:
        emit(event, payload, key=key, namespace=namespace)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise MalformedError(f"The payload does not fit the event: {problems}.") from None
    except NotStorableError as error:
        raise MalformedError(str(error)) from None


def _object(delivery: Delivery) -> Mapping[str, Any]:
    if not isinstance(delivery.data, dict):
        raise MalformedError("The body must be a JSON object.")
    return delivery.data
