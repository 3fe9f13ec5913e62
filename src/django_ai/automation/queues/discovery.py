"""Finds the automations of a project: the ``automations`` module or package of every installed app, all of it."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.util import find_spec

from django.apps import apps


def discover(name: str = "automations") -> list[str]:
    """Import ``<app>.automations`` and all modules below it, for each installed app; return what was imported.

    An app without one is passed over; an error inside one is raised as it is.
    """
    found = []
    for config in apps.get_app_configs():
        root = f"{config.name}.{name}"
        if find_spec(root) is None:
            continue
        module = import_module(root)
        found.append(root)
        for below in pkgutil.walk_packages(getattr(module, "__path__", ()), prefix=f"{root}."):
            import_module(below.name)
            found.append(below.name)
    return found
