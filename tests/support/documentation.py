"""The pages of the documentation."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
TUTORIAL = DOCS / "tutorial" / "index.md"
AGENTS = ROOT / "src" / "django_ai" / "automation" / "AGENTS.md"
PAGES = [README, *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts and page != TUTORIAL)]
