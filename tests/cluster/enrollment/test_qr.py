"""QR codes: an independent scanner (zbarimg) reads the same text from each form."""

import io
import subprocess

import pytest
from PIL import Image
from totp import SECRET, error_of

QUIET = 4  # modules
LONGEST = 2953  # bytes: ISO/IEC 18004, version 40, lowest error correction
PIXELS = 4  # per module, where a test draws


# --- From each form to a picture ----------------------------------------------------------


def png(conn, text, *scale) -> Image.Image:
    [[data]] = conn.execute(f"SELECT totp_qr_png(%s{', %s' * len(scale)})", [text, *scale]).fetchall()
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.format == "PNG"
    return image


def svg(conn, text, width=None) -> Image.Image:
    """Rendered by librsvg; width in pixels, default: one a module."""
    [[drawing]] = conn.execute("SELECT totp_qr_svg(%s)", [text]).fetchall()
    command = ["rsvg-convert", "--format=png", *([f"--width={width}", f"--height={width}"] if width else [])]
    done = subprocess.run(command, input=drawing.encode(), capture_output=True, check=True)
    return Image.open(io.BytesIO(done.stdout)).convert("RGBA")


def terminal(conn, text, ink: str, paper: str) -> Image.Image:
    """The text form as a terminal of these colors draws it: each character is one module wide and two high."""
    [[lines]] = conn.execute("SELECT totp_qr_text(%s)", [text]).fetchall()
    assert lines.endswith("\n")
    lines = lines.splitlines()
    [width] = {len(line) for line in lines}
    image = Image.new("L", (width, 2 * len(lines)), paper)
    filled = {" ": (), "▀": (0,), "▄": (1,), "█": (0, 1)}
    for y, line in enumerate(lines):
        for x, character in enumerate(line):
            for half in filled[character]:
                image.paste(ink, (x, 2 * y + half, x + 1, 2 * y + half + 1))
    return enlarged(image)


def enlarged(image: Image.Image, pixels: int = PIXELS) -> Image.Image:
    return image.resize((image.width * pixels, image.height * pixels), Image.Resampling.NEAREST)


FORMS = {
    "PNG": lambda conn, text: png(conn, text, PIXELS),
    "SVG": lambda conn, text: svg(conn, text, PIXELS * png(conn, text, 1).width),
    "text, white on black": lambda conn, text: terminal(conn, text, ink="white", paper="black"),
    "text, black on white": lambda conn, text: terminal(conn, text, ink="black", paper="white"),
}


def scanned(image: Image.Image, folder, inverted=False) -> str:
    """The text of the QR code in a picture, dark on light or, inverted, light on dark; empty if there is none."""
    path = folder / "code.png"
    image.save(path)
    # binary: the bytes as they are, without a guess at their encoding.
    done = subprocess.run(["zbarimg", "--quiet", "--raw", "--nodbus", "-Sdisable", "-Sqrcode.enable", "-Sbinary",
                           *(["-Stest-inverted"] if inverted else []), path], capture_output=True)
    assert done.returncode in (0, 4), done.stderr  # 4: it found no code
    return done.stdout.decode()


def modules(image: Image.Image) -> list[list[bool]]:
    """Which modules are dark, of a picture with one pixel a module."""
    grey = image.convert("L")
    assert set(grey.tobytes()) == {0, 255}  # nothing between
    return [[grey.getpixel((x, y)) == 0 for x in range(grey.width)] for y in range(grey.height)]


# --- What is drawn ------------------------------------------------------------------------


def uri(conn, **names) -> str:
    """An otpauth URI of the extension's own."""
    parameters = {"account_name": "alice", "issuer": None, **names}
    query = "SELECT totp_import('alice', %(secret)s, account_name => %(account_name)s, issuer => %(issuer)s)"
    return conn.execute(query, {"secret": SECRET, **parameters}).fetchone()[0]


def uri_of_200_bytes(conn) -> str:
    short = uri(conn, issuer="Example")
    text = uri(conn, account_name="alice" + "x" * (200 - len(short)), issuer="Example")
    assert len(text) == 200
    return text


def longest_of_our_own(conn) -> str:
    """Nothing that totp_enroll or totp_import returns is longer: every byte of both names needs an escape."""
    secret = "A" * 205  # 128 bytes
    query = ("SELECT totp_import('alice', %s, repeat('é', 128), repeat('日', 85) || '%%', algorithm => 'SHA512', digits => 8, period => 120)")
    return conn.execute(query, [secret]).fetchone()[0]


def padded(length: int) -> str:
    """An otpauth URI of that many bytes."""
    start = f"otpauth://totp/Example:alice?secret={SECRET}&issuer=Example&note="
    return start + "x" * (length - len(start))


TEXTS = {
    "short": lambda conn: uri(conn),
    "200 bytes": uri_of_200_bytes,
    "issuer in Japanese": lambda conn: uri(conn, account_name="ゆうき@例え.jp", issuer="日本電信電話株式会社"),
    "issuer in emoji": lambda conn: uri(conn, account_name="👩🏽‍🚀", issuer="🔐 Bank 🏦"),
    "not encoded": lambda conn: f"otpauth://totp/日本語 🔐:ユーザー?secret={SECRET}&issuer=日本語 🔐",
    "longest of our own": longest_of_our_own,
    "longest": lambda conn: padded(LONGEST),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_scanner_reads_what_went_in(conn, tmp_path, text, form):
    text = TEXTS[text](conn)
    assert scanned(FORMS[form](conn, text), tmp_path, inverted=form == "text, black on white") == text


@pytest.mark.parametrize("text", TEXTS)
def test_all_forms_draw_the_same_modules(conn, text):
    text = TEXTS[text](conn)
    drawn = modules(png(conn, text, 1))
    assert modules(svg(conn, text, len(drawn))) == drawn
    [[lines]] = conn.execute("SELECT totp_qr_text(%s)", [text]).fetchall()
    light = {" ": (False, False), "▀": (True, False), "▄": (False, True), "█": (True, True)}
    rows = [[not light[character][half] for character in line] for line in lines.splitlines() for half in (0, 1)]
    assert rows[:len(drawn)] == drawn
    assert rows[len(drawn):] == [[False] * len(drawn)]  # half a line is left over, and light


@pytest.mark.parametrize("text", TEXTS)
def test_the_quiet_zone_has_four_modules(conn, text):
    drawn = modules(png(conn, TEXTS[text](conn), 1))
    for rows in (drawn, list(zip(*drawn))):  # and from left to right
        assert len(rows) % 4 == 1 and 21 <= len(rows) - 2 * QUIET <= 177
        for row in [*rows[:QUIET], *rows[-QUIET:]]:
            assert not any(row)
        # The finder patterns touch its inner edge.
        assert all(rows[QUIET][QUIET:QUIET + 7])


# --- Sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3, 7, 8, 31, 32])
def test_a_png_has_scale_pixels_a_module(conn, tmp_path, scale):
    text = uri(conn, issuer="Example")
    smallest, image = png(conn, text, 1), png(conn, text, scale)
    assert image.mode == "1" and image.size == (smallest.width * scale, smallest.width * scale)
    assert image.tobytes() == enlarged(smallest, scale).tobytes()
    assert scanned(image if scale > 1 else enlarged(image), tmp_path) == text


def test_the_default_scale_is_8(conn):
    text = uri(conn)
    assert png(conn, text).tobytes() == png(conn, text, 8).tobytes()


def test_the_largest_png_of_all(conn, tmp_path):
    text = padded(LONGEST)
    image = png(conn, text, 32)
    assert image.size == ((177 + 2 * QUIET) * 32,) * 2
    assert scanned(image.resize((image.width // 8, image.height // 8), Image.Resampling.NEAREST), tmp_path) == text


@pytest.mark.parametrize("width", [317, 500, 1000])
def test_an_svg_scans_at_any_size(conn, tmp_path, width):
    text = uri_of_200_bytes(conn)
    assert scanned(svg(conn, text, width), tmp_path) == text


def test_an_svg_has_a_white_ground(conn):
    """So that it scans on a dark page too: no pixel lets the page through."""
    image = svg(conn, uri(conn), 400)
    assert image.getchannel("A").getextrema() == (255, 255)


@pytest.mark.parametrize("scale", [0, -1, 33, 2**31 - 1, -2**31])
def test_a_scale_out_of_range_is_refused(conn, scale):
    error = error_of(conn, "SELECT totp_qr_png('otpauth://totp/alice', %s::int)", [scale])
    assert error.sqlstate == "22023" and "1 to 32" in error.diag.message_detail


# --- Too long ---------------------------------------------------------------------------------

FUNCTIONS = ["totp_qr_svg", "totp_qr_png", "totp_qr_text"]


def refused(conn, function, text):
    error = error_of(conn, f"SELECT {function}(%s)", [text])
    assert error.sqlstate == "22023"
    return error


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_error_names_the_length_of_the_longest_uri(conn, function):
    """Found by halving the interval: what is accepted ends at one length, and that is the one the error names."""
    def fits(length):
        try:
            conn.execute(f"SELECT {function}(%s)", [padded(length)])
        except Exception as error:
            assert error.sqlstate == "22023"
            return False
        return True

    shortest_too_long, longest = 5000, 200
    assert fits(longest) and not fits(shortest_too_long)
    while shortest_too_long - longest > 1:
        middle = (longest + shortest_too_long) // 2
        if fits(middle):
            longest = middle
        else:
            shortest_too_long = middle
    assert longest == LONGEST
    error = refused(conn, function, padded(longest + 1))
    assert "too long" in error.diag.message_primary and str(longest) in error.diag.message_detail


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("text", [padded(LONGEST + 1), "é" * (LONGEST // 2 + 1), "x" * 1_000_000, "1" * 1_000_000],
                         ids=["one byte", "characters of two bytes", "a megabyte", "a megabyte of digits"])
def test_a_text_that_is_too_long_is_an_error_that_does_not_show_it(conn, function, text):
    error = refused(conn, function, text)
    told = "\n".join(str(value) for value in (error, *(getattr(error.diag, name) for name in dir(error.diag) if name[0] != "_")))
    assert text[-40:] not in told and SECRET[:8] not in told
    assert conn.execute(f"SELECT {function}('otpauth://totp/alice') IS NOT NULL").fetchone() == (True,)


@pytest.mark.parametrize("call", [*(f"{function}(NULL)" for function in FUNCTIONS), "totp_qr_png('otpauth://totp/alice', NULL)"])
def test_of_null_there_is_none(conn, call):
    """STRICT: a planner may fold it away."""
    assert conn.execute(f"SELECT {call}").fetchone() == (None,)
