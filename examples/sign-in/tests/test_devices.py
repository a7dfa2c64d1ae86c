"""What users do with their devices, in Chromium, without scripts."""

from chromium import needs_chromium, screenshot
from people import click_twice, error, fill, follow, give_code, give_password, go_back_to_an_answer, in_fours, is_about, is_at, lists, press, scan_new_device, shown_codes, sign_in
from playwright.sync_api import expect
from totp import NO_CODE

pytestmark = needs_chromium

PROOF = "Code of a device that you have, or a recovery code"
BAD_NAME = "You have a device of that name, or the name is empty or too long. Choose another one."
NEW_CODE = "Code that the new device shows"
NO_PROOF = "This code is wrong, or was used already. Wait for the next one, and type that."


def test_a_lost_phone(site, new_page):
    alice, page = site.add("alice", "phone", "tablet"), new_page()
    [code, *_] = alice.recovery_codes()
    finder = new_page()
    sign_in(finder, alice)
    give_password(page, alice)
    follow(page, "Set up a new device")
    is_at(page, "Set up a new device")
    screenshot(page, "lost-phone")
    page.get_by_label("phone", exact=True).check()
    press(page, "Go on")
    lost = alice.secrets["phone"]
    scan_new_device(page, alice, "phone", "lost-phone-new")
    fill(page, NEW_CODE, alice.wrong_code())
    fill(page, PROOF, code)
    press(page, "Confirm")
    assert error(page) == "This code is wrong. Type the one that is shown now."
    good = alice.code()
    for proof, said in (("", "You have a device already. Type a code of it, or a recovery code, in the second field."),
                        (NO_CODE, "The code of the new device is right, but the second field is not. This code is wrong. Type the one that is shown now.")):
        fill(page, NEW_CODE, good)
        fill(page, PROOF, proof)
        page.locator("#proof").evaluate("it => it.required = false")
        press(page, "Confirm")
        is_at(page, "Set up phone")
        assert error(page) == said
        expect(page.locator("#proof")).to_be_focused()
    screenshot(page, "lost-phone-wrong-recovery-code")
    fill(page, NEW_CODE, good)
    fill(page, PROOF, code)
    press(page, "Confirm")
    is_at(page, "Your recovery codes")
    follow(page, "I have them: go on")
    lists(page, [["phone", "in use"], ["tablet", "in use"]])
    finder.reload()
    is_at(finder, "Sign in")  # the session on the lost phone has ended
    give_password(finder, alice)
    alice.secrets["lost"] = lost
    site.later(30)
    give_code(finder, alice.code("lost"))
    assert error(finder).startswith("This code is wrong.")


def test_a_new_phone_while_the_old_one_works(site, new_page):
    bob, page = site.add("bob", "phone"), new_page()
    sign_in(page, bob)
    press(page, "Change phone")
    is_at(page, "Change phone")
    screenshot(page, "device")
    press(page, "Replace phone")
    is_at(page, "Replace a device")
    press(page, "Go on")
    bob.secrets["old"] = bob.secrets["phone"]
    scan_new_device(page, bob, "phone", "new-phone")
    elsewhere = new_page()
    sign_in(elsewhere, bob, "old")  # staged: the old one works
    lists(elsewhere, [["phone", "in use"], ["phone", "setup not finished"]])
    fill(page, NEW_CODE, bob.code("phone"))
    fill(page, PROOF, bob.code("old"))
    click_twice(page, site, "Confirm")
    is_at(page, "Your devices")
    lists(page, [["phone", "in use"]])
    site.later(60)
    new = new_page()
    give_password(new, bob)
    give_code(new, bob.code("old"))
    assert error(new).startswith("This code is wrong.")
    give_code(new, bob.code("phone"))
    is_at(new, "Your devices")


def test_another_device_a_name_and_a_removal(site, new_page):
    carol, page = site.add("carol", "phone"), new_page()
    [code, *_] = carol.recovery_codes()
    sign_in(page, carol)
    follow(page, "Add a device")
    is_at(page, "Add a device")
    fill(page, "Its name", "tablet")
    press(page, "Go on")
    scan_new_device(page, carol, "tablet", "another-device")
    fill(page, NEW_CODE, carol.code("tablet"))
    fill(page, PROOF, carol.code("phone"))
    press(page, "Confirm")
    is_at(page, "Your devices")
    press(page, "Change tablet")
    fill(page, "Name", "big <b>tablet</b> & more")
    fill(page, PROOF, "000000")
    press(page, "Rename")
    is_at(page, "Change tablet")
    assert error(page) == NO_PROOF
    is_about(page, PROOF)
    expect(page.get_by_label("Name", exact=True)).to_have_value("big <b>tablet</b> & more")
    fill(page, "Name", "big <b>tablet</b> & more")
    fill(page, PROOF, carol.code("phone"))
    press(page, "Rename")
    is_at(page, "Your devices")
    lists(page, [["big <b>tablet</b> & more", "in use"], ["phone", "in use"]])
    press(page, "Change big <b>tablet</b> & more")
    fill(page, "Name", "phone")
    fill(page, PROOF, code)
    press(page, "Rename")
    is_at(page, "Change big <b>tablet</b> & more")
    assert error(page) == BAD_NAME
    is_about(page, "Name", "phone")
    follow(page, "Devices")
    press(page, "Change phone")
    fill(page, PROOF, carol.code("tablet"))
    press(page, "Remove")
    is_at(page, "Your devices")
    lists(page, [["big <b>tablet</b> & more", "in use"]])
    press(page, "Change big <b>tablet</b> & more")
    fill(page, PROOF, code)
    press(page, "Remove")
    assert error(page) == "This is your only device. Replace it instead."
    is_about(page)
    assert carol.value("recovery_codes_left") == 4  # neither refusal used one up


def test_a_name_that_cannot_be(site, new_page):
    olga, page = site.add("olga", "phone"), new_page()
    sign_in(page, olga)
    follow(page, "Add a device")
    fill(page, "Its name", 65 * "four")
    press(page, "Go on")
    is_at(page, "Add a device")
    assert error(page) == BAD_NAME
    is_about(page, "Its name", 65 * "four")
    fill(page, "Its name", "tablet")
    press(page, "Go on")
    is_at(page, "Set up tablet")


def test_new_recovery_codes(site, new_page):
    dave, page = site.add("dave", "phone"), new_page()
    [old, *_] = dave.recovery_codes()
    used = dave.code()
    give_password(page, dave)
    give_code(page, used)
    follow(page, "Make new ones")
    is_at(page, "Recovery codes")
    expect(page.get_by_text("You have 4 unused recovery codes.")).to_be_visible()
    fill(page, PROOF, used)
    press(page, "Make new recovery codes")
    is_at(page, "Recovery codes")
    assert error(page).startswith(NO_PROOF)
    fill(page, PROOF, dave.code())
    press(page, "Make new recovery codes")
    is_at(page, "Your recovery codes")
    new = shown_codes(page)
    assert len(new) == 10 and old not in new
    press(page, "Sign out dave")
    give_password(page, dave)
    for code, title in ((old, "Use a recovery code"), (new[0], "Your devices")):
        page.goto(f"{site.address}/recover")
        fill(page, "Recovery code", code)
        press(page, "Go on")
        is_at(page, title)


def test_back_to_a_secret_and_to_recovery_codes(site, new_page):
    """Neither is shown again, and a form that is sent again does no harm."""
    peter, page = site.add("peter"), new_page()
    give_password(page, peter)
    press(page, "Go on")
    scan_new_device(page, peter, "phone", "before-back")
    fill(page, NEW_CODE, peter.code())
    press(page, "Confirm")
    is_at(page, "Your recovery codes")
    codes = shown_codes(page)
    follow(page, "I have them: go on")
    is_at(page, "Your devices")
    for pages, secrets in ((1, codes), (2, [peter.secrets["phone"], in_fours(peter.secrets["phone"])])):
        go_back_to_an_answer(page, pages)
        assert not [secret for secret in secrets if secret in page.content()]
        page.goto(site.address)
        is_at(page, "Your devices")
    # Sent again: the list stays, since its code is used; a new secret is staged, and the device works until it is confirmed.
    follow(page, "Recovery codes")
    fill(page, PROOF, peter.code())
    press(page, "Make new recovery codes")
    is_at(page, "Your recovery codes")
    codes = shown_codes(page)
    page.reload()
    is_at(page, "Recovery codes")
    assert error(page).startswith(NO_PROOF)
    expect(page.get_by_text("You have 10 unused recovery codes.")).to_be_visible()
    page.goto(f"{site.address}/enroll?device=phone")
    press(page, "Go on")
    is_at(page, "Set up phone")
    first = page.locator("#secret").inner_text()
    page.reload()
    is_at(page, "Set up phone")
    assert page.locator("#secret").inner_text() != first
    site.later(60)
    again = new_page()
    sign_in(again, peter)
    lists(again, [["phone", "in use"], ["phone", "setup not finished"]])
    assert peter.value("recovery_codes_left") == 10


def test_a_double_click_at_the_first_device_signs_in(site, new_page):
    """The recovery codes are in the answer that the browser drops: the page makes new ones."""
    erin, page = site.add("erin"), new_page()
    give_password(page, erin)
    press(page, "Go on")
    scan_new_device(page, erin, "phone", "double-click")
    fill(page, NEW_CODE, erin.code())
    click_twice(page, site, "Confirm")
    is_at(page, "Recovery codes")
    fill(page, PROOF, erin.code())
    press(page, "Make new recovery codes")
    is_at(page, "Your recovery codes")
