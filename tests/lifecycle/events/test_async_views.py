"""Events of what async views save: ``asave()``, ``acreate()`` and the others record them as ``save()`` does.

Each request runs in an event loop of its own, as under ASGI: Django performs the ORM's async methods in another thread,
with a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, override_settings
from django.urls import path

from django_ai.automation import complete, engine, on_event
from django_ai.automation.events.models import Event
from tests.apps.reservations.models import Reservation
from tests.support.rows import effects, event_of, leave
from tests.support.workflows import flow

pytestmark = pytest.mark.django_db(transaction=True)

View = Callable[[HttpRequest], Awaitable[HttpResponse]]


async def _confirm(request: HttpRequest) -> HttpResponse:
    reservation = await Reservation.objects.acreate()
    reservation.status = "confirmed"
    await reservation.asave()
    return HttpResponse(str(reservation.pk))


async def _create_confirmed(request: HttpRequest) -> HttpResponse:
    reservation, _ = await Reservation.objects.aupdate_or_create(note="mine", defaults={"status": "confirmed"})
    return HttpResponse(str(reservation.pk))


async def _start(request: HttpRequest) -> HttpResponse:
    run = await sync_to_async(engine.start)("flow")
    return HttpResponse(str(run.pk))


async def _fail(request: HttpRequest) -> HttpResponse:
    def save() -> None:
        with transaction.atomic():
            Reservation.objects.create(status="confirmed")
            raise ValueError("rolled back")

    await sync_to_async(save)()
    return HttpResponse()


urlpatterns = [path(view.__name__, view) for view in (_confirm, _create_confirmed, _start, _fail)]


@pytest.fixture
def get() -> Callable[[View], HttpResponse]:
    def get(view: View) -> Any:
        async def request() -> Any:
            try:
                return await AsyncClient(raise_request_exception=False).get(f"/{view.__name__}")
            finally:
                await sync_to_async(connections.close_all)()

        with override_settings(ROOT_URLCONF=__name__):
            return asyncio.run(request())

    return get


@pytest.mark.parametrize("view", [_confirm, _create_confirmed])
def test_what_an_async_view_saves_occurs(get, work, view):
    on_event("reservation_confirmed")(lambda event: leave(f"confirmed {event.entity_id}"))
    response = get(view)
    reservation = Reservation.objects.get()
    assert (response.status_code, response.content) == (200, str(reservation.pk).encode())
    assert event_of(reservation, "reservation_confirmed").occurred_at is not None
    work()
    assert effects() == [f"confirmed {reservation.pk}"]


def test_an_async_view_starts_a_run(get, work):
    def first(self):
        leave("ran")
        return complete()

    flow(first)
    assert get(_start).status_code == 200
    work()
    assert effects() == ["ran"]


def test_what_an_async_view_rolls_back_does_not_occur(get):
    assert get(_fail).status_code == 500
    assert not Reservation.objects.exists()
    assert not Event.objects.exists()


def test_an_async_view_deletes(get, work):
    reservation = Reservation.objects.create(status="confirmed", checkin_at="2031-01-01T12:00Z")
    assert event_of(reservation, "checkin_due").wake_at is not None

    async def delete() -> None:
        await (await Reservation.objects.aget()).adelete()
        await sync_to_async(connections.close_all)()

    asyncio.run(delete())
    assert not Event.objects.filter(wake_at__isnull=False, event_name="checkin_due").exists()
