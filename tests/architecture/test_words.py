"""The package and its docs use the standard terms of the field, and not the private words that they replaced."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("src", "docs", "README.md", "CONTRIBUTING.md")

REPLACED = {
    "ringer": "dispatcher",
    "Watch": "Poller",
    "lookout": "due",
    "executor": "notifier",
    "sealing": "encryption",
    "resealing": "reencrypt",
    "seal": "encrypt",
    "sealed": "encrypted",
    "unseal": "decrypt",
    "disturb": "revoke",
    "disturbed": "revoked",
    "telling": "notifying",
    "untold": "pending_notifications",
    "News": "Notification",
    "beat": "milestone",
    "beats": "milestones",
    "due_beats": "due_milestones",
    "unfire": "rearm_future",
    "birth": "activation",
    "births": "activations",
    "born": "activated",
    "unborn": "not active yet",
    "switchboard": "subscriber",
    "bridge": "subscriber",
    "set_aside": "park",
    "take_back": "unpark",
    "lies_until": "parked_reason",
    "rests_until": "waiting_reason",
    "for_code": "awaiting_deploy",
    "presence": "worker_status",
    "upkeep": "maintenance",
    "look_behind": "reconcile",
    "put_right": "reconcile",
    "chore": "periodic task",
    "cleaning": "pruning",
    "sweep": "prune",
    "Flow": "CurrentRun",
    "slots": "expressions",
    "Wanted": "DesiredEvent",
    "Reading": "Evaluation",
    "Judge": "ResidualMatcher",
    "judged": "evaluated",
    "Walk": "RunSession",
    "Entry": "StepEntry",
    "Hands": "HeldLeases",
    "take_up": "hold",
    "in hand": "leased",
    "in the leases": "leased by",
    "BrokenOffError": "ShutdownInterrupt",
    "HandedOnError": "RedirectedToSingletonError",
    "is_ordinary": "is_expected",
    "may_pass": "is_retryable",
    "after_deadlock": "retry_on_deadlock",
    "let_go_of_broken": "close_if_broken",
    "touched_nothing": "is_untouched_transaction",
    "unpooled": "dedicated_connection",
    "put_connections_aside": "abandon_inherited_connections",
    **dict.fromkeys(
        ("REST", "SHARE", "SLACK", "DEAR", "SULK", "MERCY", "BREATH", "FEW", "MANY"), "a name with its unit"
    ),
    "trouble": "failure",
    "floor": "layer",
    "floors": "layers",
    "house": "architecture",
    "the gate is shut": "FAILED",
    "nursery": "child processes",
    "whoever": "the worker, process or transaction that",
    "nobody": "no worker, no run, no subscriber",
}
"""Each private word, and the term to use. ``begin``, ``bridge over``, ``cause`` and ``tell`` are everyday English."""

ALLOWED = [
    ("beat", r"\bcelery\b|\bkeep beat|^docs/howto/migrate-from-celery", "Celery beat is a program"),
    ("beat", r"^src/django_ai/automation/queues/heartbeat\.py", "a heartbeat has beats"),
    ("sealed", r"\$sealed", "this key is stored in rows"),
    ("slots", r"slots=True", "an argument of dataclass"),
    ("slots", r"limits?\b|_slots|limiter", "what a limit has"),
    ("executor", r"executor=", "an argument of asgiref"),
    ("Flow", r"gettext\(\"Flow\"\)|\*Flow\*", "a section of the pages of runs and agents"),
    ("SHARE", r"LOCK IN SHARE MODE", "SQL"),
    ("Watch", r"Watch ``", "the verb, at the beginning of a sentence"),
    ("Reading", r"Reading another field", "the verb, at the beginning of a sentence"),
]
"""The lines that may contain such a word, and why."""


def is_allowed(word: str, line: str) -> bool:
    return any(word == each and re.search(pattern, line, re.IGNORECASE) for each, pattern, _ in ALLOWED)


def lines_with(word: str) -> list[str]:
    """Return the lines in ``PLACES`` that contain ``word``. Class and constant names are case-sensitive."""
    case = ["-i"] if word.islower() else []
    command = ["git", "grep", "-nwIF", *case, "-e", word, "--", *PLACES, ":!*.po"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode > 1:
        pytest.skip(f"not a git checkout: {found.stderr.strip()}")
    return found.stdout.splitlines()


@pytest.mark.parametrize("word", REPLACED)
def test_a_replaced_word_is_used_nowhere(word):
    found = [line for line in lines_with(word) if not is_allowed(word, line)]
    assert found == [], f"use {REPLACED[word]!r} instead of {word!r}"


@pytest.mark.parametrize(("word", "pattern"), [each[:2] for each in ALLOWED])
def test_every_exception_is_needed(word, pattern):
    assert [line for line in lines_with(word) if re.search(pattern, line, re.IGNORECASE)]
