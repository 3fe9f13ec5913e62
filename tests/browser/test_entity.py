"""The automations of a reservation in the project's own admin: the box, the preview and why; and claims of events."""

from __future__ import annotations

from datetime import timedelta

import pytest

from django_ai.automation.events.models import Event, EventClaim
from tests.apps.reservations.models import Reservation
from tests.support.browser import PHONE, SCROLLS_SIDEWAYS
from tests.support.console_rows import OPERATOR, VIEWER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.support.entity_admin"),
]

STAY = "/desk/app/reservation/{}/{}/"
PREVIEW = "[data-automation-preview-answer]"
CLAIMS = "/admin/automation_events/eventclaim/"


def whole_stay(stay: Reservation) -> Reservation:
    """Return the stay with all dates that its form asks for, to the second, as the form has them."""
    stay.checkin_at = stay.checkin_at.replace(microsecond=0)
    stay.checkout_at = stay.checkin_at + timedelta(days=1)
    stay.save()
    return stay


def previewed(visitor) -> str:
    with visitor.page.expect_response("**/automations/preview/"):
        visitor.press("What will saving do?")
    visitor.page.wait_for_selector(f"{PREVIEW} p")
    return str(visitor.page.locator(PREVIEW).inner_text())


def test_the_form_says_what_saving_will_do_and_saves_nothing(day, visit):
    stay = whole_stay(day.reminded)
    olga = visit(OPERATOR).open(STAY.format(stay.pk, "change"))
    box = olga.page.locator(".automation-box")
    assert "reminder" in box.inner_text()
    olga.page.get_by_label("Status").fill("cancelled")
    text = previewed(olga)
    assert "Saving will cancel" in text
    assert "checkin_due" in text
    assert list(olga.barriers(".automation-box", ".automation-preview")) == []  # the fields are the project's
    stay.refresh_from_db()
    assert stay.status == "confirmed"
    assert Event.objects.of(stay).get(event_name="checkin_due").status == "pending"


def test_a_change_of_the_form_asks_again_without_a_click(day, visit):
    olga = visit(OPERATOR).open(STAY.format(whole_stay(day.reminded).pk, "change"))
    olga.page.get_by_label("Status").fill("cancelled")
    with olga.page.expect_response("**/automations/preview/"):
        olga.page.get_by_label("Status").blur()
    olga.page.wait_for_selector(f"{PREVIEW} p >> text=Saving will cancel")
    olga.page.get_by_label("Status").fill("confirmed")
    with olga.page.expect_response("**/automations/preview/"):
        olga.page.get_by_label("Status").blur()
    olga.page.wait_for_selector(f"{PREVIEW} p >> text=Saving moves no timer")


def test_no_answer_is_said_and_does_not_leave_the_one_before(day, visit):
    olga = visit(OPERATOR).open(STAY.format(whole_stay(day.reminded).pk, "change"))
    previewed(olga)
    # An answer that is redirected, as to the login, is none of the form.
    redirect = {"status": 302, "headers": {"Location": "/admin/login/"}}
    olga.page.route("**/automations/preview/", lambda route: route.fulfill(**redirect))
    olga.press("What will saving do?")
    olga.page.wait_for_selector(f"{PREVIEW}:text('There is no answer. Load the page again, or try again later.')")


def test_why_is_one_click_on_the_page_of_an_entity(day, visit):
    olga = visit(OPERATOR).open(STAY.format(day.cancelled.pk, "change"))
    olga.click("Automations", exact=True)
    for title in ("What comes next", "What happened", "Who has not acted"):
        assert title in olga.text
    assert list(olga.barriers()) == []
    olga.click("Why? reminder")
    assert "workflow reminder · checkin_due: skipped" in olga.text
    assert "not yet condition true false" in olga.text
    assert list(olga.barriers()) == []
    olga.page.get_by_label("Subscriber", exact=True).select_option("send_invoice")
    olga.press("Explain")
    assert "callback send_invoice · reservation_confirmed: ran" in olga.text


def test_a_viewer_sees_the_automations_and_gets_no_preview(day, visit):
    vera = visit(VIEWER).open(STAY.format(day.reminded.pk, "change"))
    assert "reminder" in vera.page.locator(".automation-box").inner_text()
    assert vera.page.get_by_role("button", name="What will saving do?").count() == 0
    assert list(vera.barriers()) == []
    vera.click("Automations", exact=True)
    assert "What comes next" in vera.text
    vera.page.get_by_label("Subscriber", exact=True).select_option("reminder")
    vera.press("Explain")
    assert "workflow reminder" in vera.text
    assert list(vera.barriers()) == []
    refused = vera.page.request.post(
        f"{vera.server}{STAY.format(day.reminded.pk, 'automations/preview')}", headers={"Referer": vera.server}
    )
    assert refused.status == 403


def test_a_claim_is_read_by_a_viewer_and_released_by_an_operator(day, visit):
    claim = EventClaim.objects.get()
    vera = visit(VIEWER).open("/admin/").click("Claims", exact=True)
    assert str(day.waiting) in vera.text
    vera.click("message_received", within="#result_list")
    assert f"{day.waiting} keeps message_received to itself" in vera.text
    assert vera.page.get_by_role("button", name="Release").count() == 0
    assert list(vera.barriers()) == []
    olga = visit(OPERATOR).open("/admin/").click("Claims", exact=True)
    assert list(olga.barriers()) == []
    olga.click("message_received", within="#result_list")
    assert "sender_id=" in olga.text
    assert list(olga.barriers()) == []
    olga.type("Reason", "The guest is looked after.").press("Release")
    assert "Released: 1" in olga.text
    assert not EventClaim.objects.filter(pk=claim.pk).exists()


@pytest.mark.parametrize("kind", ["change", "automations", "automations?subscriber=reminder"])
def test_a_phone_does_not_scroll_sideways(day, visit, kind):
    kind, _, query = kind.partition("?")
    address = STAY.format(day.cancelled.pk, kind) + (f"?{query}" if query else "")
    olga = visit(OPERATOR, viewport=PHONE, is_mobile=True).open(address)
    assert not olga.page.evaluate(SCROLLS_SIDEWAYS)
