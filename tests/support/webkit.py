"""A real WebKit (WebKitGTK's MiniBrowser) over WebDriver, on a display and a sound device of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from tests.support.children import end, free_port, spawn
from tests.support.firefox import sound_device
from tests.support.listening import filling
from tests.support.server import eventually

_BROWSERS = "*/webkit2gtk-4.1/MiniBrowser"


class WebKit:
    """One window."""

    def __init__(self, client: httpx.Client, browser: Path) -> None:
        self._client = client
        options = {"binary": str(browser), "args": ["--automation"]}
        wanted = {"alwaysMatch": {"webkitgtk:browserOptions": options, "timeouts": {"script": 180_000}}}
        self._session = ""
        self._session = f"/session/{self._send('POST', '/session', capabilities=wanted)['sessionId']}"

    def _send(self, method: str, path: str, **body: Any) -> Any:
        response = self._client.request(method, self._session + path, json=body if method == "POST" else None)
        value = response.json()["value"]
        if response.status_code != 200:
            raise RuntimeError(f"{path}: {value['error']}: {value['message']}")
        return value

    def open(self, url: str, *, script: str = "") -> None:
        """Load a page; ``script`` runs after its own, because WebDriver has nothing earlier."""
        self._send("POST", "/url", url=url)
        self._send("POST", "/execute/sync", script=script, args=[])

    def evaluate(self, expression: str) -> Any:
        return self._send("POST", "/execute/sync", script=f"return ({expression})", args=[])

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        eventually(lambda: self.evaluate(condition))

    def click(self, selector: str) -> None:
        """Once the element is enabled."""
        self.wait(f"document.querySelector({json.dumps(selector + ':enabled')}) !== null")
        (element,) = self._send("POST", "/element", using="css selector", value=selector).values()
        self._send("POST", f"/element/{element}/click")

    def press(self, key: str) -> None:
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._send("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": keys}])

    def fill(self, selector: str, text: str) -> None:
        self.evaluate(filling(selector, text))

    def close(self) -> None:
        self._send("DELETE", "")


@contextmanager
def webkit() -> Iterator[WebKit]:
    """A browser with a profile of its own, until the ``with`` ends."""
    found = [*Path("/usr/lib").glob(_BROWSERS)]
    assert found, "the tests of the page in WebKit need Debian's webkit2gtk-driver"
    driver = shutil.which("WebKitWebDriver")
    assert driver
    with TemporaryDirectory() as home, sound_device(Path(home)) as environment, _display() as display:
        port = free_port()
        software = {"LIBGL_ALWAYS_SOFTWARE": "1", "WEBKIT_DISABLE_DMABUF_RENDERER": "1"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = spawn([driver, f"--port={port}"], env=environment | software | {"DISPLAY": display}, **quiet)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False) as client:
                eventually(lambda: _answers(client))
                browser = WebKit(client, found[0])
                yield browser
                browser.close()
        finally:
            end(process)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def _display() -> Iterator[str]:
    """The name of an X display without a screen."""
    server = shutil.which("Xvfb")
    assert server, "the tests of the page in WebKit need Debian's xvfb"
    reading, writing = os.pipe()
    screen = ["-screen", "0", "1280x1000x24", "-nolisten", "tcp", "-displayfd", str(writing)]
    process = spawn([server, *screen], pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as numbers:
            yield f":{numbers.readline().strip()}"
    finally:
        end(process)
