"""The world outside the hotel, as far as it can be played: two telephones, a printer, and the maker of the door locks.

With ``settings.HOTEL_MISHAPS`` all fail the first time, each in its own way, so that retries have something to do.
"""

from __future__ import annotations

import os
import signal

from django.conf import settings

from .models import Message


def phone_housekeeping(*, tries: int) -> None:
    """Tell housekeeping about a room. Raises ``ConnectionError`` when nobody picks up."""
    if settings.HOTEL_MISHAPS and tries == 1:
        raise ConnectionError("housekeeping does not pick up the phone")


def call_a_taxi(*, tries: int) -> None:
    """Have a taxi come. Raises ``ConnectionError`` while the line is busy."""
    if settings.HOTEL_MISHAPS and tries == 1:
        raise ConnectionError("the taxi line is busy")


def print_out(*, losses: int) -> None:
    """Have a page printed. The printer blows the fuse: the whole process dies, as if by ``kill -9``."""
    if settings.HOTEL_MISHAPS and losses == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def cut_key_card(room: str, key: str) -> str:
    """Have a card cut, and return its number; the same ``key`` gets the same card, however often it asks.

    Raises ``TimeoutError`` when the answer gets lost. The card is cut by then, which is why the key matters.
    """
    card, is_new = Message.objects.get_or_create(key=f"card:{key}", defaults={"text": f"Key card cut for room {room}"})
    if is_new and settings.HOTEL_MISHAPS:
        raise TimeoutError("the card is cut, but the answer of the lock maker got lost")
    return f"card {card.pk}"
