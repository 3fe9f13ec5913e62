"""The documentation as a site: each page and link that it names exists."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.documentation import ROOT
from tests.support.marks import only_on

pytestmark = [
    pytest.mark.slow,
    only_on("sqlite", reason="the site needs no database"),
    pytest.mark.skipif(find_spec("sphinx") is None, reason="Sphinx is in the dependency group docs"),
]


def test_the_site_is_built_without_a_warning(tmp_path):
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--builder", "html"]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "explanation" / "performance.html").exists()
