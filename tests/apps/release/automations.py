"""The automations of the release that this process runs."""

from importlib import import_module

from .models import RELEASE

import_module(f"tests.apps.release.{RELEASE}")
