"""Commands act as "command:NAME:OSUSER", so that rows say which command changed them, and who ran it."""

from __future__ import annotations

import getpass
import os
import re
from argparse import ArgumentParser
from contextlib import AbstractContextManager

from .acting import acting_as, current_actor


def add_because(parser: ArgumentParser) -> None:
    """Add the option for the reason of what a command does."""
    parser.add_argument("--because", default="", metavar="TEXT", help="why you do it, for the history")


def acting_as_command(name: str, reason: str = "") -> AbstractContextManager[None]:
    """Act as a command that this user of the operating system runs, unless the caller acts as somebody already."""
    current = current_actor()
    if current is not None:
        return acting_as(current, reason or current.reason)
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        user = str(os.getuid()) if hasattr(os, "getuid") else ""
    user = re.sub(r"[^A-Za-z0-9_.-]", "_", user)[:100]
    return acting_as(f"command:{name}:{user}" if user else f"command:{name}", reason)
