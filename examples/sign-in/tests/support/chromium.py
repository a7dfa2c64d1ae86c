"""Debian's Chromium, without a window, run as the server's user: it refuses root. Playwright drives it."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from amounts import LIGHT
from playwright.sync_api import Page, expect, sync_playwright
from server import CHECKOUT, PATIENCE_SECONDS, SERVER_USER, wait_until
from sign_in_site import end

SCREENSHOTS = CHECKOUT / "target" / "screenshots"

# It would look up hosts of its maker, and there may be none to ask.
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic", "--no-first-run")

needs_chromium = pytest.mark.skipif(LIGHT, reason="LOAD=light: without Chromium")

expect.set_options(timeout=1000 * PATIENCE_SECONDS)


class Chromium:
    def __enter__(self):
        # A folder of that user, for all that a browser writes.
        self._folder = Path(tempfile.mkdtemp(prefix="pg_totp.chromium.", dir="/tmp"))
        identity = {}
        if os.getuid() == 0:
            os.chown(self._folder, SERVER_USER.pw_uid, SERVER_USER.pw_gid)
            identity = {"user": SERVER_USER.pw_uid, "group": SERVER_USER.pw_gid, "extra_groups": []}
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                ["chromium", "--headless", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={self._folder}/profile", *QUIET],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self._folder), "TMPDIR": str(self._folder)}, **identity)
        port = self._folder / "profile" / "DevToolsActivePort"
        wait_until(lambda: self._process.poll() is not None or (port.exists() and "\n" in port.read_text()), "Chromium")
        if self._process.poll() is not None:
            raise RuntimeError(f"Chromium ended: {(self._folder / 'log').read_text()[-4000:]}")
        self._playwright = sync_playwright().start()
        try:
            address = f"http://127.0.0.1:{port.read_text().split()[0]}"
            self._browser = self._playwright.chromium.connect_over_cdp(address, timeout=1000 * PATIENCE_SECONDS)
        except BaseException:  # or Chromium would stay
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._playwright.stop()
        end(self._process, signal.SIGKILL)
        shutil.rmtree(self._folder)

    def new_page(self, **options) -> Page:
        """A page without scripts, as the application needs none, in a context of its own: cookies, history, sessions."""
        context = self._browser.new_context(**{"java_script_enabled": False, "viewport": {"width": 800, "height": 900}, **options})
        context.set_default_timeout(1000 * PATIENCE_SECONDS)
        return context.new_page()

    def close_pages(self) -> None:
        for context in self._browser.contexts[1:]:  # the first one is Chromium's own
            context.close()


def screenshot(page: Page, name: str) -> Path:
    """Kept under target/, to be looked at."""
    file = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=file, full_page=True)
    return file


def scan(page: Page, name: str) -> str:
    """What an authenticator app reads from the screen."""
    done = subprocess.run(["zbarimg", "--quiet", "--raw", screenshot(page, name)], text=True, capture_output=True, check=True)
    return done.stdout.strip()
