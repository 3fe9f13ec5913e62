"""Links of the admin pages: to what has caused a row, and to who has changed it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth import get_user_model
from django.db import models
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html

from .acting import USER
from .history import told
from .models import Action

_cause_models: dict[str, type[models.Model]] = {}


def register_cause(kind: str, model: type[models.Model]) -> None:
    """Link values of ``caused_by`` that begin with ``kind`` to rows of ``model``."""
    _cause_models[kind] = model


def model_and_key(cause: str) -> tuple[type[models.Model] | None, str]:
    """Return the model and the primary key of a cause, such as "event:3", "workflow:12:step" or "user:5"."""
    kind, _, rest = cause.partition(":")
    if kind == USER:
        return get_user_model(), rest
    return _cause_models.get(kind), rest.partition(":")[0]


def cause_link(cause: str, text: str) -> str:
    """Return ``text`` with a link to the page of a cause, such as "event:3" or "user:5", if there is one."""
    model, key = model_and_key(cause)
    if model is None:
        return text or "-"
    return link(f"{model._meta.app_label}_{model._meta.model_name}", key, text)


@dataclass(frozen=True)
class HistoryEntry:
    """An ``Action`` with the names that Django's template of a history uses."""

    action: Action

    @property
    def action_time(self) -> datetime:
        return self.action.done_at

    @property
    def user(self) -> HistoryEntry:
        return self

    def get_username(self) -> str:
        return cause_link(self.action.actor, self.action.actor_name)

    def get_full_name(self) -> str:
        name, actor = self.action.actor_name, self.action.actor
        return "" if name == actor else actor

    def get_change_message(self) -> str:
        return told(self.action)


def link(page: str, key: str, text: str) -> str:
    try:
        url = reverse(f"admin:{page}_change", args=[key])
    except NoReverseMatch:
        return text
    return format_html('<a href="{}">{}</a>', url, text)
