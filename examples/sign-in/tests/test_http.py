"""What holds for every page, and what nobody may do: requests without a browser."""

import re
import resource
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlencode

import pytest
from server import wait_until
from sign_in_site import EXAMPLE, PASSWORD
from totp import NO_CODE

MAIN = (EXAMPLE / "src" / "main.rs").read_text()
ROUTES = re.findall(r'\.route\("([^"]+)", (.+)\)', MAIN)
PAGES = [path.replace("{member}", "dora") for path, methods in ROUTES if "get(" in methods and "style" not in path]
FORMS = [path.replace("{member}", "dora") for path, methods in ROUTES if "post(" in methods]
FIELDS = {name: "x" for name in ("user", "password", "code", "device", "proof", "name")}
NO_CODE_OF_LIST = "-".join(["AAAAAA"] * 4)  # has the form of a recovery code
ENDED = "/sign-in?ended"
ARGON2_BYTES = 19 * 2**20
BEHIND_A_PROXY = {"ORIGIN": "https://example.com", "ADDRESS_HEADER": "X-Forwarded-For"}


@pytest.fixture(scope="module", autouse=True)
def dora(site):
    return site.add("dora", "phone", desk=True)


def test_the_routes_are_found():
    assert len(PAGES) == 11 and len(FORMS) == 11


@pytest.mark.parametrize("path", PAGES)
def test_who_has_not_signed_in_sees_nothing(site, dora, path):
    address = f"{path}?device=phone"
    nobody, half = site.ask("GET", address), site.ask("GET", address, token=dora.half())
    assert (nobody.status, nobody.goes_to) == ((200, None) if path == "/sign-in" else (303, "/sign-in"))
    open_to_half = ("/sign-in", "/code", "/recover", "/enroll")
    assert (half.status, half.goes_to) == ((200, None) if path in open_to_half else (303, "/code"))


@pytest.mark.parametrize("path", [path for path in FORMS if path not in ("/sign-in", "/sign-out")])
def test_who_has_not_signed_in_changes_nothing(site, path):
    answer = site.ask("POST", path, FIELDS)
    assert (answer.status, answer.goes_to) == (303, "/sign-in")


@pytest.mark.parametrize("path", [path for path in FORMS if path.startswith(("/device", "/recovery", "/desk"))])
def test_a_password_alone_changes_nothing(site, dora, path):
    answer = site.ask("POST", path, FIELDS, dora.half())
    assert (answer.status, answer.goes_to) == (303, "/code")


@pytest.mark.parametrize("path", FORMS)
def test_a_form_of_another_site_is_refused(site, dora, path):
    token = dora.half()
    for origin in ("", "null", "https://example.org", "http://127.0.0.1", f"{site.address}.example.org"):
        assert site.ask("POST", path, FIELDS, token, Origin=origin).status == 403
    assert site.ask("GET", "/code", token=token).status == 200  # nothing happened


def test_headers_of_every_answer(site, dora):
    token = dora.half()
    answers = [site.ask("GET", path, token=token) for path in [*PAGES, "/nowhere"]]
    answers += [site.ask("POST", "/code", {"code": "1"}, token), site.ask("POST", "/code", {"code": "1"}, token, Origin="x"), site.ask("PUT", "/code")]
    assert {answer.status for answer in answers} == {200, 303, 403, 404, 405, 422}
    for answer in answers:
        assert answer.headers["Cache-Control"] == "no-store"
        policy = answer.headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'"} < set(policy) and "unsafe" not in str(policy)
        assert answer.headers["Referrer-Policy"] == "same-origin" and answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("method, path, status, headers, text", [
    ("GET", "/nowhere", 404, {}, "There is no such page."),
    ("GET", "/desk/%ff", 400, {}, "Open the page again"),
    ("PUT", "/code", 405, {}, "Open the page again"),
    ("POST", "/code", 415, {"Content-Type": "text/plain"}, "Open the page again"),
    ("POST", "/code", 422, {}, "Open the page again"),
    ("POST", "/code", 413, {}, "too long"),
])
def test_an_answer_of_the_web_server_has_the_layout_of_a_page(site, dora, method, path, status, headers, text):
    fields = {422: {"code": ["1", "2"]}, 413: {"code": "1" * 17000}}.get(status, {"code": "1"})
    answer = site.ask(method, path, fields, dora.half(), **headers)
    assert answer.status == status and answer.headers.get_all("Content-Type") == ["text/html; charset=utf-8"]
    assert "<h1>" in answer.text and text in answer.text and 'role="alert"' in answer.text and "To the first page" in answer.text
    assert (answer.headers["Allow"] is not None) == (status == 405)


def test_cookies(site, dora):
    cookie = site.ask("POST", "/sign-in", {"user": "dora", "password": PASSWORD}).headers["Set-Cookie"]
    assert re.fullmatch(r"session=[0-9a-f]{64}; Path=/; HttpOnly; SameSite=Lax", cookie)
    site.stop()
    site.start(**BEHIND_A_PROXY)
    try:
        answer = site.ask("POST", "/sign-in", {"user": "dora", "password": PASSWORD}, Origin="https://example.com")
        assert re.fullmatch(r"__Host-session=[0-9a-f]{64}; Path=/; HttpOnly; SameSite=Lax; Secure", answer.headers["Set-Cookie"])
        inside = site.ask("GET", "/code", Cookie=f"__Host-session={answer.token}")
        assert inside.status == 200
        assert site.ask("GET", "/code", Cookie=f"session={answer.token}").status == 303
    finally:
        site.stop()
        site.start()


def test_without_tls_it_serves_this_machine_only(site):
    for environment in ({"LISTEN": "0.0.0.0:0"}, {"ORIGIN": "http://example.com"}, {"ORIGIN": "https://example.com/"}):
        done = subprocess.run([site.program], env=environment, text=True, capture_output=True, timeout=60)
        assert done.returncode == 1 and "set ORIGIN" in done.stderr
    done = subprocess.run([site.program], env={"ORIGIN": "https://example.com"}, text=True, capture_output=True, timeout=60)
    assert done.returncode == 1 and "set ADDRESS_HEADER" in done.stderr


def test_a_new_session_at_each_level(site):
    alice = site.add("alice", "phone")
    half = alice.half()
    full = site.ask("POST", "/code", {"code": alice.code()}, half).token
    assert half != full
    assert site.ask("GET", "/", token=full).status == 200
    assert site.ask("GET", "/", token=half).goes_to == ENDED
    again = site.ask("POST", "/sign-in", {"user": "alice", "password": PASSWORD}, full).token
    assert site.ask("GET", "/", token=full).goes_to == ENDED and site.ask("GET", "/", token=again).goes_to == "/code"
    assert site.ask("POST", "/sign-out", {}, again).goes_to == "/sign-in"
    assert site.ask("GET", "/code", token=again).goes_to == ENDED
    stored = site.database.execute("SELECT encode(token, 'hex') FROM app.session")
    assert not {half, full, again} & {token for [token] in stored}


def test_sessions_end(site, dora):
    token = dora.half()
    site.database.execute("UPDATE app.session SET expires_at = now()")
    assert site.ask("GET", "/code", token=token).goes_to == ENDED
    assert site.ask("POST", "/code", {"code": "1"}, token).goes_to == ENDED
    assert "Your session has ended. Sign in again." in site.ask("GET", ENDED).text
    dora.half()
    assert site.database.value("SELECT count(*) FROM app.session") == 1  # the old ones are deleted


def test_a_session_that_is_about_to_end_sets_up_no_device_half_way(site):
    """Who has given the password gets ten minutes more for a device. A full session does not: it would never end."""
    sue, sven = site.add("sue"), site.add("sven", "phone")
    half, full = sue.half(), sven.full()
    site.database.execute("UPDATE app.session SET expires_at = now() + interval '9 minutes' WHERE member IN ('sue', 'sven')")
    assert site.ask("POST", "/enroll", {"device": "phone"}, half).status == 200
    refused = site.ask("POST", "/enroll", {"device": "tablet"}, full)
    assert refused.status == 422 and "Your session is about to end." in refused.text
    left = "SELECT expires_at > now() + interval '9 minutes' FROM app.session WHERE member = %s AND level <> 'spent'"
    assert [site.database.execute(left, [name]) for name in ("sue", "sven")] == [[(True,)], [(False,)]]
    assert site.database.value("SELECT count(*) FROM mfa.totp_status('sven')") == 1
    long = site.database.execute("UPDATE app.session SET expires_at = now() + interval '1 hour' WHERE member = 'sven' RETURNING expires_at")
    assert site.ask("POST", "/enroll", {"device": "tablet"}, full).status == 200
    assert site.database.execute("SELECT expires_at FROM app.session WHERE member = 'sven' AND level = 'full'") == long[:1]


@pytest.mark.parametrize("path", ["/code", "/recover"])
def test_the_same_code_twice_at_once(site, path):
    name = f"twice-{path[1:]}"
    bob = site.add(name, "phone")
    half, code = bob.half(), bob.code() if path == "/code" else bob.recovery_codes()[0]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: site.ask("POST", path, {"code": code}, half), range(2)))
    assert [(answer.status, answer.goes_to) for answer in answers] == [(303, "/")] * 2
    assert len({answer.token for answer in answers}) == 2
    for answer in answers:
        assert site.ask("GET", "/", token=answer.token).status == 200
    # The old token leads nowhere else, and another code that was used does not open it.
    assert site.ask("GET", "/", token=half).goes_to == ENDED
    assert site.ask("POST", path, {"code": NO_CODE}, half).goes_to == ENDED
    site.database.execute("UPDATE app.session SET expires_at = now() WHERE level = 'spent'")
    assert site.ask("POST", path, {"code": code}, half).goes_to == ENDED


def test_a_browser_that_hangs_up_half_way(site):
    """A double click: the first request is dropped while pg_totp judges its code, and has signed the user in all the same."""
    carol = site.add("carol", "phone")
    half, code = carol.half(), carol.code()
    with closing(site.database.connect(autocommit=False)) as conn:
        conn.execute("LOCK TABLE totp.attempts IN ACCESS EXCLUSIVE MODE")
        body = urlencode({"code": code})
        host, port = site.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as browser:
            browser.sendall(f"POST /code HTTP/1.1\r\nHost: x\r\nOrigin: {site.address}\r\nCookie: session={half}\r\nContent-Length: {len(body)}\r\n"
                            f"Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}".encode())
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'web' AND wait_event_type = 'Lock'"
            wait_until(lambda: site.database.value(waiting) == 1, "the code to be judged")
            browser.shutdown(socket.SHUT_WR)
            assert browser.recv(1) == b""  # the server has dropped the request
    wait_until(lambda: carol.value("uses") == 1, "the code to be used up")
    second = site.ask("POST", "/code", {"code": code}, half)
    assert (second.status, second.goes_to) == (303, "/")
    assert site.ask("GET", "/", token=second.token).status == 200


def test_a_refused_code_is_in_the_audit_log(site):
    erin = site.add("erin", "phone")
    half = erin.half()
    for _ in range(5):
        assert site.ask("POST", "/code", {"code": erin.wrong_code()}, half).status in (422, 429)
    answer = site.ask("POST", "/code", {"code": erin.code()}, half)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "30")
    query = "SELECT event, count(*) FROM totp.audit_log WHERE user_id = 'erin' AND event <> 'imported' GROUP BY event ORDER BY event"
    assert site.database.execute(query) == [("failed", 5), ("locked", 1)]


@pytest.mark.parametrize("path", ["/device/rename", "/device/remove", "/recovery-codes", "/enroll/confirm"])
def test_a_proof_that_is_locked_says_how_long(site, path):
    nora = site.add(f"nora-{path.split('/')[-1]}", "phone", "tablet")
    token, [recovery_code, *_] = nora.full(), nora.recovery_codes()
    for proof, wrong in ((nora.code("tablet"), nora.wrong_code()), (recovery_code, NO_CODE_OF_LIST)):
        new = re.search(r'id="secret"[^>]*>([A-Z2-7 ]+)<', site.ask("POST", "/enroll", {"device": "new"}, token).text)
        nora.secrets["new"] = new[1].replace(" ", "")
        fields = {"device": "new" if path == "/enroll/confirm" else "phone", "name": "x", "code": nora.code("new")}
        answers = [site.ask("POST", path, {**fields, "proof": text}, token) for text in [wrong] * 5 + [proof]]
        assert [answer.status for answer in answers[:4] + answers[5:]] == [422] * 4 + [429]
        assert answers[5].headers["Retry-After"] == "30"
        assert "There were too many wrong codes. Try again in 30 seconds." in answers[5].text and 'id="proof"' in answers[5].text
        site.database.execute("SELECT mfa.totp_unlock(%s)", [nora.name])
    # To ask how long counts nothing.
    query = "SELECT event, count(*) FROM totp.audit_log WHERE user_id = %s AND event IN ('failed', 'locked', 'replayed') GROUP BY event ORDER BY event"
    assert site.database.execute(query, [nora.name]) == [("failed", 10), ("locked", 2)]


def test_a_user_who_does_not_exist_costs_a_hash_too(site, dora):
    """By the pages of memory that each argon2 takes, 19 MiB of them: a count, where a time would be noise."""
    site.stop()
    site.start(MALLOC_MMAP_THRESHOLD_="1048576")  # the pages go back after each hash
    try:
        def pages(method: str, **fields: str) -> int:
            before = site.page_faults()
            assert site.ask(method, "/sign-in", fields or None).status == (422 if fields else 200)
            return (site.page_faults() - before) * resource.getpagesize()

        assert pages("GET") < ARGON2_BYTES
        assert pages("POST", user="dora", password="wrong horse") >= ARGON2_BYTES
        assert pages("POST", user="nobody", password="wrong horse") >= ARGON2_BYTES
    finally:
        site.stop()
        site.start()


def test_an_address_may_send_so_many_forms_a_minute(site):
    site.stop()
    site.start(POSTS_PER_MINUTE="3")
    try:
        answers = [site.ask("POST", "/sign-out", {}) for _ in range(4)]
        assert [answer.status for answer in answers] == [303, 303, 303, 429] and answers[3].headers["Retry-After"] == "60"
        assert site.ask("POST", "/sign-out", {}, source="127.0.0.2").status == 303
        assert site.ask("GET", "/sign-in").status == 200
    finally:
        site.stop()
        site.start()


def test_behind_a_proxy_the_last_address_of_its_header_counts(site):
    site.stop()
    site.start(POSTS_PER_MINUTE="2", **BEHIND_A_PROXY)
    try:
        def status(header: str) -> int:
            return site.ask("POST", "/sign-out", {}, Origin="https://example.com", **{"X-Forwarded-For": header}).status

        sent = ["192.0.2.1", "192.0.2.9, 192.0.2.1", "192.0.2.8,192.0.2.1", "192.0.2.1, 192.0.2.2"]
        assert [status(header) for header in sent] == [303, 303, 429, 303]
    finally:
        site.stop()
        site.start()


def test_a_character_that_cannot_be(site, dora):
    answers = [site.ask("POST", "/sign-in", {"user": "a\0", "password": "x"}), site.ask("POST", "/code", {"code": "1\0"}, dora.half())]
    for answer in answers:
        assert answer.status == 422 and "There is a character in it that cannot be." in answer.text


def test_a_recovery_code_that_is_wrong(site):
    ivan = site.add("ivan", "phone")
    ivan.recovery_codes()
    refused = site.ask("POST", "/recover", {"code": NO_CODE}, ivan.half())
    assert refused.status == 422 and "This code is wrong. Type one that is not crossed out." in refused.text


@pytest.mark.parametrize("path", ["/desk/dora/unlock", "/desk/dora/reset"])
def test_the_desk_does_nothing_for_itself(site, dora, path):
    site.later(90)
    token, code = dora.full(), dora.code()
    fields = {"device": "phone", "sure": "on", "password": PASSWORD, "code": code}
    for refused in (site.ask("GET", f"{path}?device=phone", token=token), site.ask("POST", path, fields, token)):
        assert refused.status == 422 and "Nobody unlocks or resets themselves." in refused.text
    assert site.database.value("SELECT count(*) FROM totp.audit_log WHERE user_id = 'dora' AND event IN ('unlocked', 'reset')") == 0


def test_what_cannot_be_reset_uses_up_no_code_of_the_desk(site, dora):
    site.later(90)
    jane, token, code = site.add("jane", "phone", "tablet"), dora.full(), dora.code()
    site.database.execute("SELECT mfa.totp_disable('jane', 'tablet')")
    for device, status, text in (("phon", 404, "There is no such user, device or page."), ("tablet", 422, "This device is disabled")):
        fields = {"device": device, "sure": "on", "password": PASSWORD, "code": code}
        for answer in (site.ask("GET", f"/desk/jane/reset?device={device}", token=token), site.ask("POST", "/desk/jane/reset", fields, token)):
            assert answer.status == status and text in answer.text
    assert site.ask("GET", "/desk/nobody/unlock", token=token).status == site.ask("POST", "/desk/nobody/unlock", fields, token).status == 404
    refused = site.ask("POST", "/desk/jane/reset", {**fields, "device": "phone", "sure": ""}, token)
    assert refused.status == 422 and "Make sure who asks." in refused.text
    assert jane.value("state") == "active"
    done = site.ask("POST", "/desk/jane/reset", {**fields, "device": "phone"}, token)
    assert done.status == 200 and "phone of jane was reset" in done.text


@pytest.mark.parametrize("deed", ["unlock", "reset"])
def test_a_session_of_the_desk_that_was_left_open_does_nothing(site, dora, deed):
    """A thief at the screen has neither the password nor the device, and the code that opened the session is used."""
    site.later(90)
    mary, path = site.add(f"mary-{deed}", "phone"), f"/desk/mary-{deed}/{deed}"
    site.ask("POST", "/code", {"code": mary.wrong_code()}, mary.half())
    half, used = dora.half(), dora.code()
    token = site.ask("POST", "/code", {"code": used}, half).token
    good, asked = dora.code(), {"device": "phone", "sure": "on"}
    for password, code, said in (("", good, "Your password is wrong. Nothing was done."),
                                 ("wrong horse", good, "Your password is wrong. Nothing was done."),
                                 (PASSWORD, "", "This is not a whole code. Type all of it. Nothing was done."),
                                 (PASSWORD, used, "This code was used already."),
                                 *[(PASSWORD, dora.wrong_code(), "Nothing was done.")] * 4):
        refused = site.ask("POST", path, {**asked, "password": password, "code": code}, token)
        assert refused.status == 422 and said in refused.text
    for code in (dora.wrong_code(), good):
        refused = site.ask("POST", path, {**asked, "password": PASSWORD, "code": code}, token)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "30") and "Try again in 30 seconds. Nothing was done." in refused.text
    query = "SELECT count(*) FROM totp.audit_log WHERE user_id = %s AND event IN ('unlocked', 'reset')"
    assert site.database.execute(query, [mary.name]) == [(0,)]
    site.database.execute("SELECT mfa.totp_unlock('dora')")
    done = site.ask("POST", path, {**asked, "password": PASSWORD, "code": good}, token)
    assert done.status == (303 if deed == "unlock" else 200)
    assert site.database.execute(query, [mary.name]) == [(1,)]


def test_a_removed_device_takes_the_other_sessions_with_it(site):
    heidi = site.add("heidi", "phone", "tablet")
    thief, half, mine = heidi.full(), heidi.half(), heidi.full()
    wrong = {"device": "phone", "name": "x", "proof": heidi.wrong_code()}
    assert site.ask("POST", "/device/remove", wrong, mine).status == 422
    assert site.ask("GET", "/", token=thief).status == 200
    right = {"device": "phone", "name": "x", "proof": heidi.code("tablet")}
    assert site.ask("POST", "/device/remove", right, mine).goes_to == "/"
    assert [site.ask("GET", "/", token=token).goes_to for token in (thief, half, mine)] == [ENDED, ENDED, None]


def test_a_user_whose_devices_are_all_disabled_stays_out(site):
    frank = site.add("frank", "phone")
    site.database.execute("SELECT mfa.totp_disable('frank')")
    answer = site.ask("POST", "/sign-in", {"user": "frank", "password": PASSWORD})
    assert "Ask the help desk" in site.ask("GET", "/code", token=answer.token).text
    assert "blocked" in site.ask("POST", "/enroll", {"device": "phone"}, answer.token).text
    new = re.search(r'id="secret"[^>]*>([A-Z2-7 ]+)<', site.ask("POST", "/enroll", {"device": "other"}, answer.token).text)
    frank.secrets["other"] = new[1].replace(" ", "")
    refused = site.ask("POST", "/enroll/confirm", {"device": "other", "code": frank.code("other")}, answer.token)
    assert refused.status == 422 and refused.token is None


@pytest.mark.parametrize("pages", [True, False])
def test_a_password_of_the_desk_sets_up_no_first_device(site, pages):
    """With the pages of the desk, and without."""
    site.stop()
    site.start(**({} if pages else {"DESK_DATABASE": None}))
    name = "dan" if pages else "dana"
    dan = site.add(name, desk=True)
    half = dan.half()
    answers = [site.ask("GET", "/code", token=half), site.ask("GET", "/enroll", token=half), site.ask("POST", "/enroll", {"device": "phone"}, half)]
    assert answers[0].goes_to == "/enroll"
    # A device that they began to set up before they came to the desk.
    dan.secrets["phone"] = site.database.execute("SELECT secret FROM mfa.totp_enroll(%s, device => 'phone')", [name])[0][0]
    for path in ("/enroll/confirm", "/code"):
        answers.append(site.ask("POST", path, {"device": "phone", "code": dan.code()}, half))
    for answer in answers[1:]:
        assert answer.status == 422 and "ask an administrator to set up your first device" in answer.text and answer.token is None
    assert dan.value("state") == "pending"
    site.stop()
    site.start()


def test_without_the_role_of_the_desk_there_is_no_desk(site, dora):
    site.later(90)
    token = dora.full()
    assert site.ask("GET", "/desk", token=token).status == 200 and "Help desk" in site.ask("GET", "/", token=token).text
    site.stop()
    site.start(DESK_DATABASE=None)
    try:
        assert site.ask("GET", "/desk", token=token).status == 404 and "Help desk" not in site.ask("GET", "/", token=token).text
    finally:
        site.stop()
        site.start()


def test_a_page_shows_no_device_that_is_not_one(site):
    rita = site.add("rita", "phone")
    half, full = rita.half(), rita.full()
    for device, status in (("phone", 200), ("Call%20020%20123", 404)):
        assert site.ask("GET", f"/device?device={device}", token=full).status == status
        for token in (half, full):
            answer = site.ask("GET", f"/enroll?device={device}", token=token)
            assert answer.status == status and "020 123" not in answer.text


def test_the_web_role_can_do_no_more_than_enroll(site):
    with closing(site.database.connect(user="web")) as conn:
        granted = "SELECT has_function_privilege(p.oid, 'EXECUTE') FROM pg_proc p WHERE proname = %s"
        able = {name: conn.execute(granted, [name]).fetchone()[0]
                for name in ("totp_check", "totp_enroll", "totp_unenroll", "totp_reset", "totp_unlock", "totp_import", "totp_list")}
        assert [name for name, may in able.items() if may] == ["totp_check", "totp_enroll", "totp_unenroll"]
        rights = "SELECT has_table_privilege('app.member', 'UPDATE, INSERT, DELETE'), has_schema_privilege('totp', 'USAGE')"
        assert conn.execute(rights).fetchone() == (False, False)


def test_no_code_and_no_secret_in_the_logs(site):
    grace = site.add("grace", "phone")
    codes = [grace.wrong_code(), grace.code()]
    half = grace.half()
    for code in codes:
        site.ask("POST", "/code", {"code": code}, half)
    # An error of the server, which has a DETAIL with what was typed.
    site.database.execute("""CREATE FUNCTION app.fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                                 RAISE 'the disk is full' USING ERRCODE = '53100', DETAIL = encode(NEW.token, 'hex'); END $$;
                               CREATE TRIGGER fails BEFORE INSERT ON app.session FOR EACH ROW EXECUTE FUNCTION app.fails()""")
    try:
        assert site.ask("POST", "/sign-in", {"user": "grace", "password": PASSWORD}).status == 500
    finally:
        site.database.execute("DROP FUNCTION app.fails CASCADE")
    assert site.log_text().endswith("error: 53100: the disk is full\n")
    logged = site.log_text() + site.cluster.log_text()
    assert not [text for text in (*codes, grace.secrets["phone"], half, PASSWORD) if text in logged]
