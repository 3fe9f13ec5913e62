"""The form that edits the Context of a run or agent as JSON. Only what the user has changed is given to the engine."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from ..exceptions import InvalidContextError
from ..values.digests import digest
from .context_inputs import UNREADABLE


class ContextForm(forms.Form):
    """The Context of ``row`` as JSON, and a mark of what the page has shown."""

    context = forms.CharField(label=_("Context"), strip=False, widget=forms.Textarea(attrs={"rows": 16, "cols": 80}))
    seen = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, row: Any, given: Any = None) -> None:
        shown = json.dumps(row.data, indent=2, ensure_ascii=False, default=str)
        super().__init__(given, initial={"context": shown, "seen": digest("context", shown)})
        self.row = row

    def clean_seen(self) -> str:
        """Refuse a form that shows an older Context: its values would overwrite what code has written since."""
        seen = str(self.cleaned_data["seen"])
        if seen != self.initial["seen"]:
            raise ValidationError(gettext("The Context has changed since this page was opened. Open it again."))
        return seen

    def clean_context(self) -> dict[str, Any]:
        """Return the fields whose values differ from those of the row."""
        try:
            given = json.loads(self.cleaned_data["context"])
        except UNREADABLE as error:
            raise ValidationError(gettext("This is not JSON: %s.") % error) from error
        if not isinstance(given, dict):
            raise ValidationError(gettext("The Context must be an object in braces."))
        missing = [name for name in self.row.data if name not in given]
        if missing:
            raise ValidationError(gettext("Fields cannot be removed: %s.") % ", ".join(missing))
        absent = object()
        return {name: value for name, value in given.items() if self.row.data.get(name, absent) != value}


def add_field_errors(form: forms.Form, error: InvalidContextError) -> None:
    """Show each error of the Pydantic model at its field of the form, or at the Context as a whole."""
    for name, text in (error.errors or {"": str(error)}).items():
        at = next((each for each in (f"field-{name}", "context") if each in form.fields), None)
        form.add_error(at, f"{name}: {text}" if name and at != f"field-{name}" else text)
