"""Migrations match the models."""

from __future__ import annotations

import pytest
from django.core.management import call_command

from django_ai.automation.app_names import AUTOMATION_APPS

pytestmark = pytest.mark.django_db(databases="__all__")  # the command asks each database for its migrations


@pytest.mark.parametrize("app", AUTOMATION_APPS)
def test_no_migration_is_missing(app):
    label = f"automation_{app.rpartition('.')[2]}"
    call_command("makemigrations", label, check=True, dry_run=True, verbosity=0)
