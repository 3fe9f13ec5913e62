"""The pytest plugin: the fixture ``time_machine``, its marker, and the optional dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from django.utils import timezone

from django_ai.automation.testing import TimeMachine, plugin
from django_ai.automation.testing import machine as machine_module
from django_ai.automation.testing import time_machine as machine_at

time_machine = plugin.time_machine  # the fixture, as a conftest would import it


def python(*arguments, **extra) -> subprocess.CompletedProcess[str]:
    """Run a separate Python process with the same settings."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=60, check=False, **extra,
    )  # fmt: skip


@pytest.mark.slow
def test_the_fixture_and_its_marker(tmp_path):
    """Both work in a separate pytest run beside the package time-machine, which has a fixture of the same name."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["django_ai.automation.testing.plugin"]\n')
    (tmp_path / "test_it.py").write_text(
        f"""
import pytest
from datetime import datetime, UTC
from django_ai.automation.testing import TimeMachine

def test_now(time_machine):
    assert isinstance(time_machine, TimeMachine)
    assert abs(time_machine.now.timestamp() - {time.time()}) < 600

@pytest.mark.time_machine(start="2030-01-07T12:00Z", raise_errors=True)
def test_then(time_machine):
    assert datetime.now(UTC) == time_machine.now == datetime(2030, 1, 7, 12, tzinfo=UTC)
    assert time_machine._raise_errors
"""
    )
    done = python("-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", ".", cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_fixture_can_be_imported(time_machine):
    assert isinstance(time_machine, TimeMachine)
    assert timezone.now() == time_machine.now


def test_the_package_can_be_imported_before_django_is_set_up():
    done = python("-c", "import django_ai.automation.testing.plugin, sys; assert 'django.db' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_is_not_installed_is_not_needed_until_it_is():
    done = python(
        "-c",
        "import sys; sys.modules['pytest'] = sys.modules['time_machine'] = None\n"
        "import django; django.setup()\n"
        "from django_ai.automation.testing import TimeMachine, assert_occurred, runs_of, time_machine\n"
        "for _ in range(2):\n"
        "    try: time_machine().__enter__()\n"
        "    except ImportError as error: print(error)\n",
    )
    assert done.stdout.count('pip install "django-ai-automation[testing]"') == 2, done.stdout + done.stderr


def test_a_library_that_is_too_old_is_refused(monkeypatch):
    monkeypatch.setattr(machine_module, "version", lambda name: "2.19.0")
    with pytest.raises(ImportError, match=r">= 3, and 2\.19\.0 is installed\. Install it with"), machine_at():
        pass


def test_the_facade_says_what_is_public():
    from django_ai.automation import testing

    assert testing.TimeMachine is TimeMachine
    assert sorted(testing.__all__) == testing.__all__
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError):
        testing.nothing  # noqa: B018
