"""Finds the automations of a project: the ``automations`` module of every installed app, or all of that package."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.util import find_spec

from django.apps import apps


def discover(name: str = "automations") -> list[str]:
    """Import ``<app>.automations`` and all modules below it, for each installed app; return what was imported.

    An app without one is skipped. An error inside one is raised unchanged.
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
