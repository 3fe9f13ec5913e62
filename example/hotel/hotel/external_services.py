"""Simulated external services: two telephones, a printer, and a service that cuts key cards.

With ``settings.HOTEL_FAULTS`` the first call of each fails, each in another way, to show retries and recovery.
"""

from __future__ import annotations

import os
import signal

from django.conf import settings

from .models import Message


def phone_housekeeping(*, tries: int) -> None:
    """Call housekeeping about a room. Raises ``ConnectionError`` if the call is not answered."""
    if settings.HOTEL_FAULTS and tries == 1:
        raise ConnectionError("housekeeping does not answer the phone")


def call_a_taxi(*, tries: int) -> None:
    """Order a taxi. Raises ``ConnectionError`` while the line is busy."""
    if settings.HOTEL_FAULTS and tries == 1:
        raise ConnectionError("the taxi line is busy")


def print_page(*, losses: int) -> None:
    """Print a page. With faults, the process is killed with SIGKILL the first time."""
    if settings.HOTEL_FAULTS and losses == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def cut_key_card(room: str, key: str) -> str:
    """Cut a key card and return its number. Calls with the same ``key`` return the same card.

    Raises ``TimeoutError`` if the answer is lost. The card is cut nevertheless, so a retry needs the same key. Raises
    ``ConnectionError`` for the rooms in ``settings.HOTEL_NO_CARDS``, at each attempt.
    """
    if room in settings.HOTEL_NO_CARDS:
        raise ConnectionError(f"The key card machine does not answer for room {room}.")
    card, is_new = Message.objects.get_or_create(key=f"card:{key}", defaults={"text": f"Key card cut for room {room}"})
    if is_new and settings.HOTEL_FAULTS:
        raise TimeoutError("the card is cut, but the answer was lost")
    return f"card {card.pk}"
