"""What people do in the browser, by what they see and hear: labels, buttons, links, headings."""

import re
from contextlib import closing

from chromium import scan
from playwright.sync_api import Page, expect
from server import wait_until
from sign_in_site import PASSWORD, Person, Site

# What a screen reader, a keyboard and a browser need of every page.
FAULTS = """() => {
  const all = (what) => [...document.querySelectorAll(what)], faults = [];
  const check = (good, fault) => good || faults.push(fault);
  check(document.documentElement.lang === 'en', 'language');
  check(all('h1').length === 1 && document.title.replace(/^Error: /, '') === all('h1')[0].textContent + ' - Example', 'title and heading');
  check(all('main').length === 1, 'main');
  check(all('script, [style], [onclick], [onsubmit]').length === 0, 'script or inline style');
  const ids = all('[id]').map((it) => it.id);
  check(new Set(ids).size === ids.length, 'an id is there twice');
  for (const it of all('input:not([type=hidden])')) {
    check(it.labels.length === 1 && it.labels[0].textContent.trim(), 'label of ' + it.name);
    for (const id of (it.getAttribute('aria-describedby') || '').split(' ').filter(Boolean)) check(ids.includes(id), 'description ' + id);
  }
  for (const it of all('button, a')) check(it.textContent.trim(), 'name of a button or link');
  const heading = all('h1, h2').map((it) => it.tagName);
  check(heading[0] === 'H1', 'first heading');
  const error = document.querySelector('[role=alert]');
  check(document.title.startsWith('Error: ') === Boolean(error), 'error in the title');
  const form = document.querySelector('main form');
  if (error && form) check(error.compareDocumentPosition(form) & Node.DOCUMENT_POSITION_FOLLOWING, 'error before the form');
  if (error) check(all('[autofocus]').length <= 1, 'focus');
  check(all('[tabindex]').length === 0, 'order of the keyboard');
  return faults;
}"""


def is_at(page: Page, title: str) -> None:
    """The page has this heading, and is in order."""
    expect(page.get_by_role("heading", level=1)).to_have_text(title)
    assert page.evaluate(FAULTS) == []


def press(page: Page, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


def tab_to(page: Page, name: str) -> None:
    """Press the tabulator until what has this name, or a label of this text, has the focus."""
    named = "(it => (it.labels?.[0] ?? it).textContent.trim())(document.activeElement)"
    passed = []
    while name not in passed:
        page.keyboard.press("Tab")
        passed.append(page.evaluate(named))
        assert len(passed) < 100, passed


def click_twice(page: Page, site: Site, button: str) -> None:
    """A double click whose second half comes while pg_totp judges the code of the first: the browser drops that request."""
    found = page.get_by_role("button", name=button, exact=True)
    found.scroll_into_view_if_needed()
    box = found.bounding_box()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'web' AND wait_event_type = 'Lock'"
    with closing(site.database.connect(autocommit=False)) as conn:
        conn.execute("LOCK TABLE totp.attempts IN ACCESS EXCLUSIVE MODE")
        for clicks in (1, 2):
            page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            wait_until(lambda: site.database.value(waiting) == clicks, "the click")


def follow(page: Page, link: str) -> None:
    page.get_by_role("link", name=link, exact=True).click()


def go_back_to_an_answer(page: Page, pages: int) -> None:
    """The back button, to what a form was answered with: Chromium has not kept it, and asks whether to send the form again."""
    page.evaluate(f"history.go(-{pages})")
    expect(page).to_have_title("127.0.0.1")  # a page of its own, with the host in the title


def in_fours(secret: str) -> str:
    """As the page writes it."""
    return " ".join(re.findall(".{1,4}", secret))


def fill(page: Page, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)


def error(page: Page) -> str:
    """What the page says went wrong."""
    return page.get_by_role("alert").inner_text()


def is_about(page: Page, label: str = "", value: str = "") -> None:
    """The error marks this field, which has the cursor and still what was typed. Without a label: no field."""
    expect(page.locator("[aria-invalid]")).to_have_count(1 if label else 0)
    if label:
        field = page.get_by_label(label, exact=True)
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_be_focused()
        expect(field).to_have_value(value)


def give_password(page: Page, person: Person, password: str = PASSWORD) -> None:
    page.goto(f"{person.site.address}/sign-in")
    is_at(page, "Sign in")
    fill(page, "User name", person.name)
    fill(page, "Password", password)
    press(page, "Sign in")


def give_code(page: Page, code: str) -> None:
    fill(page, "Code", code)
    press(page, "Go on")


def sign_in(page: Page, person: Person, device: str = "phone") -> None:
    give_password(page, person)
    is_at(page, "Type your code")
    give_code(page, person.code(device))
    is_at(page, "Your devices")


def scan_new_device(page: Page, person: Person, device: str, name: str) -> None:
    """Read the QR code from the screen into the user's app, and see that the typed secret is the same one."""
    uri = scan(page, name)
    assert uri.startswith(f"otpauth://totp/Example:{person.name}?secret=")
    person.secrets[device] = re.search(r"secret=(\w+)", uri)[1]
    assert page.locator("#secret").inner_text().replace(" ", "") == person.secrets[device]
    assert page.get_by_role("link", name="Open it in an app on this device").get_attribute("href") == uri


def lists(page: Page, devices: list[list[str]]) -> None:
    """The page has these devices, each with its name and its state."""
    rows = [re.compile(rf"^{re.escape(name)}\s+{state}\s") for name, state in devices]
    expect(page.locator("tr:has(td)")).to_have_text(rows, use_inner_text=True)


def shown_codes(page: Page) -> list[str]:
    """Ten recovery codes."""
    expect(page.locator("ol li")).to_have_count(10)
    return page.locator("ol li").all_inner_texts()
