"""Debian's Chromium, for the tests that look at pages."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which

from playwright.sync_api import Browser, sync_playwright


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser, which is closed at the end."""
    program = which("chromium")
    assert program is not None, "chromium is missing: run `make test`, or deploy/setup.sh --tests"
    with sync_playwright() as playwright:
        # root can't use chromium's sandbox; the pages are our own
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield browser
        browser.close()
