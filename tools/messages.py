"""Extract the translatable strings of the admin, update the catalogues, and compile them: ``make messages``.

    python tools/messages.py [--check]

Each app has its messages in its own ``locale`` folder, as Django finds them. A message that several apps use is in the
lowest of them. Those of templates are extracted, too: Django makes Python of their tags. Babel extracts and compiles,
so GNU gettext is not needed. ``--check`` writes nothing, and fails if a catalogue is incomplete or outdated.
"""

from __future__ import annotations

import argparse
import gettext
import io
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from django.conf import settings
from django.utils.translation.template import templatize

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "django_ai" / "automation"
APPS = ("queues", "events", "workflows", "agents", "console")
"""The lowest layer first."""
LANGUAGES = ("de", "es", "fr")
KEYWORDS: dict[str, tuple[int, ...] | None] = {
    "_": None,
    "gettext_lazy": None,
    "gettext": None,
    "ngettext": (1, 2),
    "ngettext_lazy": (1, 2),
}
HEADER = "# Translations of django-ai-automation, PROJECT\n# This file is distributed under the licence of the project."
PLACEHOLDER = re.compile(r"%(?:\(\w+\))?\w|\{\w+\}")
NO_DATE = datetime(2026, 1, 1, tzinfo=UTC)
"""Catalogues carry no dates: the same messages give the same files."""

Compiled = str | tuple[str, int]
MessageId = str | tuple[str, str]
"""A message, or the singular and the plural of one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a catalogue is outdated")
    if not parser.parse_args().check:
        update()
    if problems := list(problems_of()):
        raise SystemExit("\n".join(["FAILED: the catalogues are outdated:", *problems]))


def messages() -> dict[str, list[MessageId]]:
    """Return the messages of each app, without those that a lower app uses."""
    found: dict[str, list[MessageId]] = {}
    known: set[MessageId] = set()
    for app in APPS:
        used = {
            message
            for path in sorted((PACKAGE / app).rglob("*"))
            if path.suffix in (".py", ".html", ".txt")
            for message in messages_in(path.read_text(encoding="utf-8"), is_template=path.suffix != ".py")
        }
        found[app] = sorted(used - known, key=str)
        known |= used
    return found


@cache
def messages_in(source: str, *, is_template: bool = False) -> frozenset[MessageId]:
    """Return the messages of a module or a template. The result is cached, because the check reads the whole source
    once more after each change."""
    if is_template:
        if not settings.configured:
            settings.configure()
        # Its lines are as indented as those of the template, which is no Python.
        source = "\n".join(line.strip() for line in templatize(source).splitlines())
    found = extract("python", io.BytesIO(source.encode()), keywords=KEYWORDS)
    return frozenset(each if isinstance(each, str) else (each[0], each[1]) for _, each, *_ in found)


def folder_of(app: str, language: str) -> Path:
    return PACKAGE / app / "locale" / language / "LC_MESSAGES"


def read(app: str, language: str) -> Catalog:
    """Return the catalogue of an app, which is empty if it does not exist yet."""
    path = folder_of(app, language) / "django.po"
    return read_po(io.BytesIO(path.read_bytes() if path.exists() else b""), locale=language, domain="django")


def update() -> None:
    """Write the catalogues with the current messages, and keep their translations."""
    for app, wanted in messages().items():
        for language in LANGUAGES:
            former = read(app, language)
            catalogue = Catalog(
                language,
                domain="django",
                header_comment=HEADER,
                project="django-ai-automation",
                version="",
                msgid_bugs_address="https://github.com/django-ai-automation/django-ai-automation/issues",
                creation_date=NO_DATE,
                revision_date=NO_DATE,
                language_team="django-ai-automation contributors",
                last_translator="django-ai-automation contributors",
                fuzzy=False,
            )
            for message in wanted:
                translated = former.get(message)
                is_kept = (
                    translated and not translated.fuzzy and isinstance(translated.id, str) == isinstance(message, str)
                )
                catalogue.add(message, translated.string if translated and is_kept else "")
            folder = folder_of(app, language)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "django.po").open("wb") as file:
                write_po(file, catalogue, width=120, no_location=True, sort_output=True)
            for message in [each for each in catalogue if each.id and not all(strings_of(each))]:
                catalogue.delete(message.id)  # an empty form of a plural would be shown
            with (folder / "django.mo").open("wb") as file:
                write_mo(file, catalogue)


def problems_of() -> Iterator[str]:
    """Yield the problems of the catalogues, one line each."""
    for app, wanted in messages().items():
        for language in LANGUAGES:
            catalogue = read(app, language)
            entries = {each.id if isinstance(each.id, str) else tuple(each.id): each for each in catalogue if each.id}
            where = f"{app}, {language}"
            yield from (f"{where}: run make messages, {each!r} is missing" for each in wanted if each not in entries)
            yield from (f"{where}: run make messages, {each!r} is not used" for each in entries if each not in wanted)
            yield from (
                f"{where}: translate {name!r} in the catalogue, and run make messages"
                for name, each in entries.items()
                if not all(strings_of(each)) or each.fuzzy
            )
            yield from (
                f"{where}: {name!r} and its translation have different placeholders"
                for name, each in entries.items()
                if all(strings_of(each)) and not has_placeholders_of(each)
            )
            if compiled(app, language) != compiled_entries(entries.values()):
                yield f"{where}: run make messages, django.mo does not match django.po"


def strings_of(message: Message) -> tuple[str, ...]:
    """Return the translation of a message, or of each of its plural forms."""
    return (message.string,) if isinstance(message.string, str) else tuple(message.string) or ("",)


def has_placeholders_of(message: Message) -> bool:
    """Return whether a translation has the placeholders of the message: the first form of a plural those of the
    singular or of the plural, and the others those of the plural."""
    names = (message.id,) if isinstance(message.id, str) else message.id
    wanted = [sorted(PLACEHOLDER.findall(each)) for each in names]
    found = [sorted(PLACEHOLDER.findall(each)) for each in strings_of(message)]
    return found[0] in wanted and all(each == wanted[-1] for each in found[1:])


def compiled_entries(entries: Iterable[Message]) -> dict[Compiled, str]:
    """Return what a compiled catalogue of these messages has."""
    found: dict[Compiled, str] = {}
    for each in entries:
        if not all(strings_of(each)):
            continue
        if isinstance(each.id, str):
            found[each.id] = strings_of(each)[0]
        else:
            found |= {(each.id[0], number): string for number, string in enumerate(strings_of(each))}
    return found


def compiled(app: str, language: str) -> dict[Compiled, str]:
    """Return the translations in the compiled catalogue of an app."""
    path = folder_of(app, language) / "django.mo"
    if not path.exists():
        return {}
    with path.open("rb") as file:
        known: dict[Compiled, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    return {name: string for name, string in known.items() if name}


if __name__ == "__main__":
    main()
