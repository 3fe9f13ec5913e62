"""The form with which staff pauses everything of a name or queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.forms import CharField, ChoiceField, ModelForm, Textarea, ValidationError
from django.utils.translation import gettext_lazy as _

from . import pausing
from .models import Pause
from .pauses import EVERYTHING

if TYPE_CHECKING:
    PauseModelForm = ModelForm[Pause]
else:  # at run time Django's class is not generic
    PauseModelForm = ModelForm


def pause_choices() -> list[Any]:
    """Return what can be paused, grouped."""
    groups = [(scope, [(f"{scope}:{name}", name) for name in pausing.names_in(scope)]) for scope in pausing.scopes()]
    return [(EVERYTHING, _("everything")), *((scope, names) for scope, names in groups if names)]


class PauseForm(PauseModelForm):
    target = ChoiceField(label=_("target"), choices=pause_choices)
    reason = CharField(label=_("reason"), required=False, widget=Textarea(attrs={"rows": 3}))

    class Meta:
        model = Pause
        fields = ("target", "reason")

    def clean_target(self) -> str:
        target = str(self.cleaned_data["target"])
        if Pause.objects.filter(target=target).exists():
            raise ValidationError(_("This is paused already."))
        return target
