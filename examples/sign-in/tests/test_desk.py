"""The help desk, in Chromium, without scripts."""

from datetime import timedelta

import pytest
from chromium import needs_chromium, screenshot
from people import error, fill, follow, give_code, give_password, is_about, is_at, press, scan_new_device, shown_codes, sign_in, tab_to
from playwright.sync_api import expect

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def dora(site):
    """Who works at the desk."""
    return site.add("dora", "phone", desk=True)


def lists_users(page, names: list[str]) -> None:
    expect(page.get_by_role("rowheader")).to_have_text(names)


def test_the_list_by_pages_and_by_prefix(site, new_page, dora):
    site.database.execute("""SELECT count(mfa.totp_import('many-' || lpad(n::text, 2, '0'), repeat(chr(64 + n), 20), encoding => 'raw'))
                               FROM generate_series(1, 25) AS n""")
    page = new_page()
    sign_in(page, dora)
    follow(page, "Help desk")
    is_at(page, "Help desk")
    fill(page, "User name begins with", "MANY")
    press(page, "Search")
    is_at(page, "Help desk")
    lists_users(page, [f"many-{n:02}" for n in range(1, 21)])
    screenshot(page, "desk-list")
    press(page, "Next page")
    is_at(page, "Help desk")
    lists_users(page, [f"many-{n:02}" for n in range(21, 26)])
    expect(page.get_by_text("No more users.")).to_be_visible()
    fill(page, "User name begins with", "many-0")
    press(page, "Search")
    lists_users(page, [f"many-0{n}" for n in range(1, 10)])
    fill(page, "User name begins with", "nobody%")
    press(page, "Search")
    lists_users(page, [])


def test_a_user_who_is_locked_is_seen_and_unlocked(site, new_page, dora):
    alice, hers, page, began = site.add("alice", "phone"), new_page(), new_page(), site.now
    give_password(hers, alice)
    for _ in range(5):
        give_code(hers, alice.wrong_code())
    site.later(20)
    sign_in(page, dora)
    page.goto(f"{site.address}/desk?prefix=alice")
    row = ["alice", "phone", "active", f"until {began + timedelta(seconds=30):%H:%M:%S} UTC"]
    expect(page.locator("tr:has(td)").locator("th, td")).to_have_text(row)
    follow(page, "alice")
    is_at(page, "User alice")
    expect(page.get_by_text("5 wrong codes in a row. 0 recovery codes left. Codes are locked.")).to_be_visible()
    screenshot(page, "desk-locked")
    press(page, "Unlock")
    is_at(page, "Unlock alice?")
    screenshot(page, "desk-unlock")
    fill(page, "Your password", "wrong horse")
    good = dora.code()
    fill(page, "A code of your own device", good)
    press(page, "Unlock alice")
    assert error(page) == "Your password is wrong. Nothing was done."
    is_about(page, "Your password")
    fill(page, "Your password", "correct horse")
    fill(page, "A code of your own device", dora.wrong_code())
    press(page, "Unlock alice")
    is_about(page, "A code of your own device")
    fill(page, "Your password", "correct horse")
    fill(page, "A code of your own device", good)
    press(page, "Unlock alice")
    is_at(page, "User alice")
    expect(page.get_by_text("0 wrong codes in a row. 0 recovery codes left.")).to_be_visible()
    happened = [f"{site.now:%Y-%m-%d %H:%M:%S}", "unlocked", "", "desk:dora", f"{began:%Y-%m-%d %H:%M:%S}", "locked", "", "web"]
    for i, text in enumerate(happened):
        expect(page.locator("td").nth(i)).to_have_text(text)
    give_code(hers, alice.code())
    is_at(hers, "Your devices")


def test_a_reset(site, new_page, dora):
    site.later(600)
    bob, his, page = site.add("bob", "phone"), new_page(), new_page()
    [recovery_code, *_] = bob.recovery_codes()
    sign_in(his, bob)
    sign_in(page, dora)
    page.goto(f"{site.address}/desk/bob")
    press(page, "Reset phone")
    is_at(page, "Reset phone of bob?")
    expect(page.get_by_text("Warning: the codes that phone of bob shows stop working at once.")).to_be_visible()
    screenshot(page, "desk-reset")
    follow(page, "Cancel")
    is_at(page, "User bob")
    press(page, "Reset phone")

    def try_to_reset(password: str, code: str) -> None:
        page.get_by_label("I have made sure that it is bob who asks").check()
        page.get_by_label("Make new recovery codes, too: someone may have the old list").check()
        fill(page, "Your password", password)
        fill(page, "A code of your own device", code)
        press(page, "Reset phone of bob")

    good = dora.code()
    for password, code, said in (("wrong horse", good, "Your password is wrong. Nothing was done."),
                                 ("correct horse", dora.wrong_code(), "This code is wrong. Type the one that is shown now. Nothing was done.")):
        try_to_reset(password, code)
        is_at(page, "Reset phone of bob?")
        assert error(page) == said
    his.reload()
    is_at(his, "Your devices")
    old = bob.secrets["phone"]
    try_to_reset("correct horse", good)
    is_at(page, "phone of bob was reset")
    scan_new_device(page, bob, "phone", "desk-reset-done")
    new_codes = shown_codes(page)
    assert len(new_codes) == 10

    # Who, which device, when.
    query = "SELECT event, device, actor, db_user, at FROM totp.audit_log WHERE user_id = 'bob' AND actor LIKE 'desk:%' ORDER BY id"
    assert site.database.execute(query) == [("reset", "phone", "desk:dora", "desk", site.now),
                                            ("recovery_codes_created", None, "desk:dora", "desk", site.now)]
    follow(page, "Done")
    is_at(page, "User bob")
    expect(page.get_by_role("row", name=f"{site.now:%Y-%m-%d %H:%M:%S} reset phone desk:dora")).to_be_visible()
    screenshot(page, "desk-after-reset")

    his.reload()
    is_at(his, "Sign in")  # signed out
    give_password(his, bob)
    bob.secrets["old"] = old
    give_code(his, bob.code("old"))
    assert error(his).startswith("This code is wrong.")
    his.goto(f"{site.address}/recover")
    fill(his, "Recovery code", recovery_code)
    press(his, "Go on")
    assert error(his).startswith("This code is wrong.")
    follow(his, "Back to the code of your app")
    give_code(his, bob.code("phone"))
    is_at(his, "Your devices")


def test_a_reset_by_keyboard_alone(site, new_page, dora):
    site.later(600)
    site.add("frank", "phone")
    page = new_page()
    keys = page.keyboard
    sign_in(page, dora)
    tab_to(page, "Help desk")
    keys.press("Enter")
    is_at(page, "Help desk")
    tab_to(page, "User name begins with")
    keys.type("frank")
    keys.press("Enter")
    lists_users(page, ["frank"])
    tab_to(page, "frank")
    keys.press("Enter")
    is_at(page, "User frank")
    tab_to(page, "Reset phone")
    keys.press("Enter")
    is_at(page, "Reset phone of frank?")
    tab_to(page, "I have made sure that it is frank who asks")
    keys.press("Space")
    tab_to(page, "Your password")
    keys.type("correct horse")
    tab_to(page, "A code of your own device")
    keys.type(dora.code())
    keys.press("Enter")
    is_at(page, "phone of frank was reset")


def test_nobody_resets_their_own_device(site, new_page, dora):
    site.later(600)
    page = new_page()
    sign_in(page, dora)
    page.goto(f"{site.address}/desk/dora")
    press(page, "Reset phone")
    is_at(page, "That was not done")
    assert error(page) == "Nobody unlocks or resets themselves. Ask a colleague."


def test_an_old_session_of_the_desk_resets_nothing(site, new_page, dora):
    """A session that was left open, and the code that it was begun with."""
    site.later(600)
    carol, page = site.add("carol", "phone"), new_page()
    used = dora.code()
    give_password(page, dora)
    give_code(page, used)
    page.goto(f"{site.address}/desk/carol/reset?device=phone")
    page.get_by_label("I have made sure that it is carol who asks").check()
    fill(page, "Your password", "correct horse")
    fill(page, "A code of your own device", used)
    press(page, "Reset phone of carol")
    assert error(page).startswith("This code was used already.")
    assert carol.value("state") == "active"


def test_others_have_no_desk(site, new_page):
    dave, page = site.add("dave", "phone"), new_page()
    sign_in(page, dave)
    expect(page.get_by_role("link", name="Help desk")).to_have_count(0)
    for path in ("/desk", "/desk/dora", "/desk/dora/reset?device=phone"):
        page.goto(site.address + path)
        is_at(page, "No such page")
