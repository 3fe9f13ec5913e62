"""Sphinx: ``make docs``. Warnings are errors, and nothing is read from the network."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import django
from django.conf import settings

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "src"))

settings.configure(
    SECRET_KEY="only to read docstrings",
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django_ai.automation.queues",
        "django_ai.automation.events",
        "django_ai.automation.workflows",
        "django_ai.automation.agents",
    ],
)
django.setup()

from django_ai.automation import __version__  # noqa: E402

project = "django-ai-automation"
author = "django-ai-automation contributors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # or attributes would be described twice
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = f"django-ai-automation {version}"
html_show_sphinx = False

KINDS = ("tutorial", "howto", "reference", "explanation")


def write_llms(app: Any, exception: Exception | None) -> None:
    """Write ``llms.txt`` (a list of the pages with their first sentence) and ``llms-full.txt`` (their text)."""
    if exception is not None or app.builder.name != "html":
        return
    pages = {kind: sorted((DOCS / kind).glob("*.md")) for kind in KINDS}
    index = (DOCS / "index.md").read_text()
    lines = [f"# {project}", "", f"> {summary(index)}", ""]
    for kind, found in pages.items():
        lines += [f"## {title((DOCS / kind / 'index.md').read_text())}", ""]
        for page in found:
            text = page.read_text()
            lines.append(f"- [{title(text)}]({kind}/{page.stem}.html): {summary(text)}")
        lines.append("")
    out = Path(app.outdir)
    (out / "llms.txt").write_text("\n".join(lines))
    everything = [index, *(page.read_text() for found in pages.values() for page in found)]
    (out / "llms-full.txt").write_text("\n\n".join(without_comments(text) for text in everything))


def title(text: str) -> str:
    """Return the first heading of a page."""
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1]  # type: ignore[index]


def summary(text: str) -> str:
    """Return the first sentence of a page."""
    body = re.sub(r"^# .+\n+", "", without_comments(text), count=1)
    paragraph = " ".join(body.partition("\n\n")[0].split())
    plain = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", paragraph).replace("**", "")
    return re.split(r"(?<=[.]) ", plain)[0]


def without_comments(text: str) -> str:
    """Return a page without what only its test reads."""
    return re.sub(r"<!---.*?--->\n*", "", text, flags=re.DOTALL)


def setup(app: Any) -> None:
    app.connect("build-finished", write_llms)
