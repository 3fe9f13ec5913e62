"""``AUTOMATION_APPS`` installs the package in one line; the error for a missing app contains its name and the fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from django.test import override_settings

import django_ai.automation
from django_ai.automation import AUTOMATION_APPS
from django_ai.automation.exceptions import SettingsError
from django_ai.automation.installation import missing_apps, require_app_of
from django_ai.automation.queues.checks import check_apps

SOURCE = Path(django_ai.automation.__file__).parents[2]
SETTINGS = """
from django_ai.automation import AUTOMATION_APPS
SECRET_KEY = "x" * 50
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "hostel", %s]
"""


def check_project(folder: Path, installed: str, automations: str = "") -> subprocess.CompletedProcess[str]:
    """Run ``manage.py check`` in a project with one app."""
    (folder / "hostel").mkdir()
    (folder / "hostel" / "__init__.py").write_text("")
    (folder / "hostel" / "automations.py").write_text(automations)
    (folder / "site_settings.py").write_text(SETTINGS % installed)
    return subprocess.run(
        [sys.executable, "-m", "django", "check"],
        cwd=folder,
        env={"DJANGO_SETTINGS_MODULE": "site_settings", "PYTHONPATH": f"{SOURCE}:{folder}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def without(*missing: str) -> str:
    return f"*(name for name in AUTOMATION_APPS if name.rpartition('.')[2] not in {missing})"


def test_every_app_of_the_package_is_listed():
    found = {f"django_ai.automation.{path.parent.name}" for path in (SOURCE / "django_ai/automation").glob("*/apps.py")}
    assert set(AUTOMATION_APPS) == found


def test_a_settings_module_may_import_the_list(tmp_path):
    found = check_project(tmp_path, "*AUTOMATION_APPS")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("missing", ["queues", "events"])
def test_a_missing_lower_app_is_named_as_django_starts(tmp_path, missing):
    found = check_project(tmp_path, without(missing))
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert f"'django_ai.automation.{missing}' is not in INSTALLED_APPS" in last
    assert "*AUTOMATION_APPS" in last


@pytest.mark.parametrize(("missing", "name"), [("workflows", "workflow"), ("agents", "agent")])
def test_a_missing_app_that_the_project_imports_is_named_as_django_starts(tmp_path, missing, name):
    found = check_project(tmp_path, without(missing), f"from django_ai.automation import {name}")
    assert found.returncode != 0
    assert f"'django_ai.automation.{missing}' is not in INSTALLED_APPS" in found.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("missing", [("workflows",), ("agents",), ("events", "workflows", "agents")], ids=str)
def test_the_check_names_every_missing_app(tmp_path, missing):
    found = check_project(tmp_path, without(*missing))
    assert found.returncode == 0, found.stderr  # an app may be left out on purpose
    assert found.stderr.count("automation.W016") == len(missing)
    for each in missing:
        assert f"'django_ai.automation.{each}' is not in INSTALLED_APPS." in found.stderr
    assert "*AUTOMATION_APPS" in found.stderr


def test_the_check_is_silent_with_all_apps():
    assert missing_apps() == []
    assert check_apps(None) == []


def test_models_of_a_project_are_not_asked_for_an_app_of_ours():
    with override_settings(INSTALLED_APPS=[]):
        require_app_of("hostel.models")
        with pytest.raises(SettingsError, match=r"workflows' is not in INSTALLED_APPS.*workflows\.models is imported"):
            require_app_of("django_ai.automation.workflows.models")
