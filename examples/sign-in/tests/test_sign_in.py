"""From the password to the signed-in page, in Chromium, without scripts."""

from chromium import needs_chromium, screenshot
from people import click_twice, error, fill, follow, give_code, give_password, in_fours, is_at, lists, press, scan_new_device, shown_codes, sign_in
from playwright.sync_api import expect
from server import CHECKOUT

pytestmark = needs_chromium


def test_first_device_then_sign_in_with_it(site, new_page):
    alice, page = site.add("alice"), new_page()
    page.goto(site.address)
    is_at(page, "Sign in")
    screenshot(page, "sign-in")
    give_password(page, alice)
    is_at(page, "Set up your first device")
    screenshot(page, "first-device")
    press(page, "Go on")
    is_at(page, "Set up phone")
    scan_new_device(page, alice, "phone", "enrollment")
    is_as_in_the_readme(page, alice)
    fill(page, "Code that the new device shows", alice.wrong_code())
    press(page, "Confirm")
    is_at(page, "Set up phone")
    assert error(page) == "This code is wrong. Type the one that is shown now."
    screenshot(page, "enrollment-wrong-code")
    fill(page, "Code that the new device shows", alice.code())
    press(page, "Confirm")
    is_at(page, "Your recovery codes")
    codes = shown_codes(page)
    assert len(set(codes)) == 10
    screenshot(page, "recovery-codes")
    page.emulate_media(media="print")
    expect(page.get_by_role("button", name="Sign out alice")).to_be_hidden()
    expect(page.get_by_text(codes[9])).to_be_visible()
    page.emulate_media(media="screen")
    follow(page, "I have them: go on")
    is_at(page, "Your devices")
    lists(page, [["phone", "in use"]])
    screenshot(page, "devices")
    press(page, "Sign out alice")
    is_at(page, "Sign in")
    sign_in(page, alice)
    press(page, "Sign out alice")
    give_password(page, alice)
    follow(page, "Use a recovery code")
    is_at(page, "Use a recovery code")
    fill(page, "Recovery code", codes[3])
    screenshot(page, "recovery-code")
    press(page, "Go on")
    is_at(page, "Your devices")
    expect(page.get_by_text("9 recovery codes are left.")).to_be_visible()


def is_as_in_the_readme(page, person) -> None:
    """The README shows a picture of this page. Who changes the page takes target/screenshots/enrollment.png for a new one."""
    text = page.get_by_role("main").inner_text().replace(in_fours(person.secrets["phone"]), "(secret)")
    assert text.split() == (CHECKOUT / "docs/images/enrollment.txt").read_text().split()


def test_wrong_password_and_unknown_user_look_alike(site, new_page):
    bob, page = site.add("bob", "phone"), new_page()
    give_password(page, bob, "wrong horse")
    is_at(page, "Sign in")
    assert error(page) == "User name or password is wrong. Type both again."
    known = page.content()
    fill(page, "User name", "bob2")
    fill(page, "Password", "wrong horse")
    press(page, "Sign in")
    is_at(page, "Sign in")
    assert page.content().replace("bob2", "bob") == known
    screenshot(page, "wrong-password")


def test_the_name_in_another_spelling_is_the_same_user(site, new_page):
    site.add("carol", "phone")
    page = new_page()
    page.goto(f"{site.address}/sign-in")
    fill(page, "User name", " Carol ")
    fill(page, "Password", "correct horse")
    press(page, "Sign in")
    is_at(page, "Type your code")


def test_a_password_is_not_cut(site, new_page):
    long = "correct horse " * 30
    person, page = site.add("long", "phone"), new_page()
    site.database.execute("UPDATE app.member SET password = %s WHERE name = 'long'", [site.hash_of(long)])
    page.goto(f"{site.address}/sign-in")
    fill(page, "User name", person.name)
    page.get_by_label("Password", exact=True).focus()
    page.keyboard.insert_text(long)
    press(page, "Sign in")
    is_at(page, "Type your code")


def test_double_click_signs_in(site, new_page):
    dave, page = site.add("dave", "phone"), new_page()
    give_password(page, dave)
    is_at(page, "Type your code")
    fill(page, "Code", dave.code())
    click_twice(page, site, "Go on")
    is_at(page, "Your devices")
    # Both clicks were answered: each with a session, of which the browser has the second.
    levels = "SELECT level, count(*) FROM app.session WHERE member = 'dave' GROUP BY level ORDER BY level"
    assert site.database.execute(levels) == [("full", 2), ("spent", 1)]
    assert (dave.value("uses"), dave.value("failures")) == (1, 0)
    page.reload()
    is_at(page, "Your devices")


def test_a_form_on_another_site_does_nothing(site, new_page):
    mallory, page = site.add("mallory", "phone"), new_page()
    sign_in(page, mallory)
    page.goto("about:blank")
    page.set_content(f'<form method="post" action="{site.address}/sign-out"><button>Win a phone</button></form>')
    press(page, "Win a phone")
    is_at(page, "Not sent from this site")
    follow(page, "To the first page")
    is_at(page, "Your devices")


def test_back_and_forward_after_sign_in(site, new_page):
    erin, page = site.add("erin", "phone"), new_page()
    sign_in(page, erin)
    for _ in range(2):  # to the code, and to the password
        page.go_back(wait_until="commit")
        is_at(page, "Your devices")
    page.go_forward(wait_until="commit")
    is_at(page, "Your devices")
    press(page, "Sign out erin")
    is_at(page, "Sign in")
    page.go_back(wait_until="commit")
    is_at(page, "Sign in")  # nothing of what was seen before is shown again


def test_two_tabs(site, new_page):
    frank, first = site.add("frank", "phone"), new_page()
    give_password(first, frank)
    is_at(first, "Type your code")
    second = first.context.new_page()
    second.goto(f"{site.address}/code")
    is_at(second, "Type your code")
    code = frank.code()
    give_code(first, code)
    is_at(first, "Your devices")
    give_code(second, code)
    is_at(second, "Your devices")
    assert frank.value("failures") == 0
    first.reload()
    is_at(first, "Your devices")


def test_a_used_code_signs_nobody_else_in(site, new_page):
    grace, hers, his = site.add("grace", "phone"), new_page(), new_page()
    for page in (hers, his):
        give_password(page, grace)
    code = grace.code()
    for page in (hers, his):
        give_code(page, code)
    is_at(hers, "Your devices")
    is_at(his, "Type your code")
    assert error(his) == "This code was used already. Wait for the next one."
    screenshot(his, "used-code")


def test_a_lock_runs_out(site, new_page):
    heidi, page = site.add("heidi", "phone"), new_page()
    give_password(page, heidi)
    said = []
    for _ in range(5):
        give_code(page, heidi.wrong_code())
        is_at(page, "Type your code")
        said.append(error(page))
    assert said[3:] == ["This code is wrong. After one more you have to wait. Type the one that is shown now.",
                        "This code is wrong, and it was one too many. Try again in 30 seconds."]
    give_code(page, heidi.code())
    assert error(page) == "There were too many wrong codes. Try again in 30 seconds."
    screenshot(page, "locked")
    site.later(29)
    give_code(page, heidi.code())
    assert error(page) == "There were too many wrong codes. Try again in 1 second."
    site.later(31)
    give_code(page, heidi.code())
    is_at(page, "Your devices")


def test_without_end_locked_a_recovery_code_helps(site, new_page):
    ivan, page = site.add("ivan", "phone"), new_page()
    [code, *_] = ivan.recovery_codes()
    site.cluster.configure(totp__hard_limit=5)
    site.cluster.reload()
    give_password(page, ivan)
    try:
        for _ in range(6):
            give_code(page, ivan.wrong_code())
        assert error(page) == "There were too many wrong codes. Use a recovery code, or ask the help desk."
    finally:
        site.cluster.configure(totp__hard_limit=100)
        site.cluster.reload()
    follow(page, "Use a recovery code")
    fill(page, "Recovery code", code.lower())
    press(page, "Go on")
    is_at(page, "Your devices")


def test_by_keyboard_alone(site, new_page):
    judy, page = site.add("judy", "phone"), new_page()
    page.goto(site.address)
    expect(page.get_by_label("User name")).to_be_focused()  # the cursor is in the first field
    for text in ("judy", "correct horse"):
        page.keyboard.type(text)
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    is_at(page, "Type your code")
    expect(page.get_by_label("Code", exact=True)).to_be_focused()
    page.keyboard.type(judy.wrong_code())
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_label("Code", exact=True)).to_be_focused()  # where the mistake was
    page.keyboard.type(judy.code())
    page.keyboard.press("Enter")
    is_at(page, "Your devices")
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.textContent"))
    assert order == ["Devices", "Recovery codes", "Sign out judy", "Change phone", "Add a device", "Make new ones"]
    page.keyboard.press("Enter")
    is_at(page, "Recovery codes")


def test_what_a_screen_reader_says(site, new_page):
    kim, page = site.add("kim", "phone"), new_page()
    give_password(page, kim)
    give_code(page, kim.wrong_code())
    expect(page.get_by_role("main")).to_match_aria_snapshot("""
      - main:
        - heading "Type your code" [level=1]
        - alert: This code is wrong. Type the one that is shown now.
        - text: Code
        - paragraph: Open your authenticator app, and type the code that it shows for this site.
        - textbox "Code"
        - button "Go on"
        - heading "No code?" [level=2]
        - list:
          - listitem:
            - link "Use a recovery code"
          - listitem:
            - link "Set up a new device"
          - listitem:
            - link "Sign in as someone else"
    """)
    code = page.get_by_label("Code", exact=True)
    expect(code).to_be_focused()
    expect(code).to_have_accessible_description(
        "This code is wrong. Type the one that is shown now. Open your authenticator app, and type the code that it shows for this site.")
    expect(code).to_have_attribute("autocomplete", "one-time-code")
    expect(code).to_have_attribute("inputmode", "numeric")
    assert page.title() == "Error: Type your code - Example"
