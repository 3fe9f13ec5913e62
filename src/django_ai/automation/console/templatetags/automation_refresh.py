"""What a page says to ``refresh.js``, which reads it again while it is open."""

from __future__ import annotations

from django import template
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext

register = template.Library()


@register.simple_tag
def automation_refresh(seconds: int) -> SafeString:
    """Return the attributes of the element whose content is refreshed every ``seconds``, with the words of its button
    and of what it tells."""
    words = {
        "automation-refresh": str(seconds),
        "pause": gettext("Pause refreshing"),
        "resume": gettext("Refresh again"),
        "every": gettext("Refreshed every %s s.") % seconds,
        "paused": gettext("Refreshing is paused."),
        "changed": gettext("The page has changed."),
        "failed": gettext("The page could not be refreshed. It will be tried again."),
        "stopped": gettext("The page can no longer be refreshed. Load it again."),
    }
    return format_html_join(" ", 'data-{}="{}"', words.items())
