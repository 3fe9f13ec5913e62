"""A models module can import the top-level names of the package, before any app is ready."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import django_ai.automation

SETTINGS = """
    SECRET_KEY = "x" * 50
    USE_TZ = True
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
    AUTOMATION = {"RUNTIME": "inline"}
    INSTALLED_APPS = ["hostel", "django_ai.automation.queues", "django_ai.automation.events",
                      "django_ai.automation.workflows", "django_ai.automation.agents"]
"""


REPORT = "import hostel.models; from hostel import report; print(*report())"


def project(folder: Path, models: str, automations: str = "", code: str = REPORT) -> subprocess.CompletedProcess[str]:
    """Set up a project with one app in a subprocess, execute ``code``, and return the finished process."""
    (folder / "hostel").mkdir()
    (folder / "hostel" / "__init__.py").write_text("")
    (folder / "hostel" / "models.py").write_text(textwrap.dedent(models))
    if automations:
        (folder / "hostel" / "automations.py").write_text(textwrap.dedent(automations))
    (folder / "site_settings.py").write_text(textwrap.dedent(SETTINGS))
    (folder / "hostel" / "__init__.py").write_text(
        "def report():\n"
        "    from django_ai.automation.events.callbacks import all_callbacks\n"
        "    from django_ai.automation.workflows.definitions import all_workflows\n"
        "    return sorted([c.event_name for c in all_callbacks()] + [w.name for w in all_workflows()])\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import django; django.setup(); {code}"],
        cwd=folder,
        env={
            "DJANGO_SETTINGS_MODULE": "site_settings",
            "PYTHONPATH": f"{Path(django_ai.automation.__file__).parents[2]}:{folder}",
            "PATH": "",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_importing_the_package_needs_no_django_settings():
    code = (
        "import django_ai.automation as a, sys; "
        "print(sorted(a.__all__) == sorted(set(a.__all__)), 'django' in sys.modules)"
    )
    source = str(Path(django_ai.automation.__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": source, "PATH": ""}, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.split() == ["True", "False"], found.stderr


def test_a_models_module_may_import_the_package_and_use_definitions(tmp_path):
    found = project(
        tmp_path,
        """
        from django.db import models
        from django_ai import automation
        from django_ai.automation import EventDefinition, on_event

        class Bed(models.Model):
            free = models.BooleanField(default=False)
            events = [EventDefinition("bed_free", condition=lambda bed: bed.free)]

        @on_event("bed_free")
        def ring(event):
            pass
        """,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["bed_free"]


def test_a_models_module_may_import_every_public_name(tmp_path):
    names = ", ".join(django_ai.automation.__all__)
    found = project(tmp_path, f"from django_ai.automation import {names}")
    assert found.returncode == 0, found.stderr


def test_the_automations_of_an_app_are_found(tmp_path):
    found = project(
        tmp_path,
        """
        from django.db import models
        from django_ai.automation.events.definitions import EventDefinition

        class Bed(models.Model):
            events = [EventDefinition("bed_made")]
        """,
        """
        from pydantic import BaseModel
        from django_ai.automation import complete, on_event, step, workflow

        @on_event("bed_made")
        def ring(event):
            pass

        @workflow("turn over")
        class TurnOver:
            class Context(BaseModel):
                pass

            @step(start=True)
            def run(self):
                return complete()
        """,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["bed_made", "turn", "over"]


def test_events_may_be_registered_before_the_automation_apps_are_ready(tmp_path):
    """In a models module and in an automations module alike: both are recorded once the apps are ready."""
    found = project(
        tmp_path,
        """
        from django.db import models
        from django_ai.automation import EventDefinition, register_events

        class Bed(models.Model):
            pass

        class Bath(models.Model):
            pass

        register_events(Bed, EventDefinition("bed_made"))
        """,
        """
        from django_ai.automation import EventDefinition, on_event, register_events
        from hostel.models import Bath, Bed

        BATH_CLEANED = EventDefinition("bath_cleaned")
        register_events(Bath, BATH_CLEANED)

        @on_event(BATH_CLEANED)
        def ring(event):
            pass
        """,
        code="from hostel.models import Bath, Bed; print(Bath.save_base.commits_events, Bed.save_base.commits_events)",
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["True", "True"]


def test_an_error_in_a_projects_automations_is_not_swallowed(tmp_path):
    found = project(tmp_path, "", "import a_module_that_is_not_there")
    assert found.returncode != 0
    assert "a_module_that_is_not_there" in found.stderr


@pytest.mark.parametrize("name", django_ai.automation.__all__)
def test_every_public_name_is_there(name):
    assert getattr(django_ai.automation, name) is not None
    assert name in dir(django_ai.automation)


def test_what_is_not_there_says_so():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = django_ai.automation.nothing_like_it
