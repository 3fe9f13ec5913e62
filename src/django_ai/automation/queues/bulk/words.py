"""The texts of the pages that ask before an action on many rows, show bulk actions, and mute problems."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

# -- confirming an action on many rows ---------------------------------------------------------------------------------

ALL_ROWS = _("all rows")
BACK = _("No, take me back")
CONCERNED = _("Concerned: %(count)s (%(rows)s).")
CONCERNED_MANY = _("Concerned: more than %(count)s (%(rows)s).")
CONDITIONS = _("Rows with")
FINAL = _("This cannot be undone.")
HOW = _(
    "Workers do it in the background, a part of the rows at a time. Rows that no longer match when their turn comes "
    "are left alone. You can watch it and stop it."
)
NOTHING = _("There is nothing to do.")
SAY_WHY = _("Say why: the history of each row will show it.")
STARTED = _("It is carried out in the background now.")
TOO_MANY = _("With this filter, select at most %s rows.")
TOO_OLD = _("This page was too old. Look again at what is there now.")

# -- a bulk action -----------------------------------------------------------------------------------------------------

DONE = _("done")
FAILED = _("failed")
PROGRESS = _("%(done)s of %(total)s")
REFUSED = _("refused")
REMAINING = _("remaining")
STOP = _("Stop")
WHO = _("Who")

# -- problems ----------------------------------------------------------------------------------------------------------

CANCEL_THESE = _("Cancel these")
FOR_AN_HOUR = _("for an hour")
FOR_A_DAY = _("for a day")
FOR_A_WEEK = _("for a week")
FOR_EVER = _("for ever")
HAS_CHANGED = _("The row has changed. Look again at what is there now.")
HOW_LONG = _("How long")
HOW_MUTED = _(
    "Rows with this error, now and later, do not alert, and this page folds them. Ids in the error may differ. Every "
    "other error still alerts."
)
IS_MUTED = _("The problem is muted. It alerts no more, and other errors do.")
MUTE = _("Mute")
MUTE_A_PROBLEM = _("Mute a problem")
MUTED = _("Muted")
MUTED_BY = _("Muted %(until)s by %(who)s.")
NOT_MUTED = _("%s is not muted any more.")
OTHERS_ASK = _("Say why: others will ask.")
RESUME_THESE = _("Resume these")
SOME_CODE = _("code")
UNMUTE = _("Unmute")
UNMUTED = _("Unmuted")
UNTIL = _("until %s")
