"""A Chromium for the tests and the benchmark of the report, driven by selenium."""

from __future__ import annotations

import contextlib
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: A browser that talks to nobody by itself; a sandbox cannot be had as root.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


def is_there() -> bool:
    """Tell whether Chromium and its driver are installed."""
    return None not in (shutil.which("chromium"), shutil.which("chromedriver"))


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Start Chromium without a window, with an empty folder for its profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as started:
        yield started
        # Vol, in the same process, has forbidden urllib the network, through which selenium ends its driver.
        urllib.request.install_opener(urllib.request.build_opener())
