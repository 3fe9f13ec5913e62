"""``ActorMiddleware``: what a request changes has its user as the cause."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

from django_ai.automation import acting_as

__all__ = ["ActorMiddleware"]


class ActorMiddleware:
    """Acts as the user of the request, in sync and async views.

    Events, runs, agents and signals that the request creates get ``user:5`` as their cause, and what it cancels or
    pauses names the user. The user is looked up at the first such write: another request reads no session and makes no
    query here. ``request.user`` may be set by any middleware, authentication class or view, before or after this
    middleware; the value at the time of the write counts. Without a user that has logged in, no actor is named.

    It covers the view, the middleware below, and the functions that they give to ``transaction.on_commit``; not the
    content of a streaming response, which Django makes later.

    Args:
        get_response: The next middleware, or the view.

    Example:
        In the settings::

            MIDDLEWARE = [
                ...,
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django_ai.automation.contrib.actor.ActorMiddleware",
            ]
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._respond(request)
        with acting_as(lambda: getattr(request, "user", None)):
            response: HttpResponseBase = self.get_response(request)
            return response

    async def _respond(self, request: HttpRequest) -> HttpResponseBase:
        with acting_as(lambda: getattr(request, "user", None)):
            response: HttpResponseBase = await self.get_response(request)
            return response
