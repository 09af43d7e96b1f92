"""A real Firefox over WebDriver BiDi, which it speaks without a driver in between."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.listening import filling
from tests.support.server import eventually

_PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "datareporting.healthreport.uploadEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "http://127.0.0.1:9/",
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self.send("session.new", capabilities={})
        self._tab = self.send("browsingContext.create", type="tab")["context"]

    def send(self, method: str, **params: Any) -> Any:
        """The result of a command.

        Raises:
            RuntimeError: the browser refuses it.
        """
        number = next(self._ids)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._connection.recv(timeout=180))
            if answer.get("id") == number:
                if answer["type"] == "error":
                    raise RuntimeError(f"{method}: {answer['error']}: {answer['message']}")
                return answer["result"]

    def open(self, url: str, *, preload: str = "") -> None:
        """Load a page; ``preload`` runs before its own scripts."""
        script = self.send("script.addPreloadScript", functionDeclaration=f"() => {{ {preload} }}")["script"]
        self.send("browsingContext.navigate", context=self._tab, url=url, wait="complete")
        self.send("script.removePreloadScript", script=script)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, which has to be JSON; promises are awaited."""
        answer = self.send(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._tab},
            awaitPromise=True,
            userActivation=False,
        )
        if answer["type"] == "exception":
            raise RuntimeError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"].get("value", "null"))

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        eventually(lambda: self.evaluate(condition))

    def click(self, selector: str) -> None:
        """As a person does: with the pointer, where the element is once it is enabled and stays in its place."""
        x, y = self.evaluate(
            f"""(async () => {{
              for (let last = null; ; await new Promise(requestAnimationFrame)) {{
                const element = document.querySelector({json.dumps(selector)});
                if (!element || element.disabled) continue;
                element.scrollIntoView({{ block: "center" }});
                const {{ left, top, width, height }} = element.getBoundingClientRect();
                const place = [Math.round(left + width / 2), Math.round(top + height / 2)];
                if (width && String(place) === last) return place;
                last = String(place);
              }}
            }})()"""
        )
        pointer = [
            {"type": "pointerMove", "x": x, "y": y},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        actions = [{"type": "pointer", "id": "mouse", "actions": pointer}]
        self.send("input.performActions", context=self._tab, actions=actions)

    def press(self, key: str) -> None:
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        actions = [{"type": "key", "id": "keyboard", "actions": keys}]
        self.send("input.performActions", context=self._tab, actions=actions)

    def fill(self, selector: str, text: str) -> None:
        self.evaluate(filling(selector, text))


@contextmanager
def firefox() -> Iterator[Firefox]:
    """A headless browser with a profile and a sound server of its own, until the ``with`` ends."""
    path = shutil.which("firefox-esr") or shutil.which("firefox")
    assert path, "the tests of the page need Debian's firefox-esr"
    with TemporaryDirectory() as home, sound_device(Path(home)) as environment:
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in _PREFERENCES.items()]
        profile = Path(home, "profile")
        profile.mkdir()
        (profile / "user.js").write_text("\n".join(lines))
        process = subprocess.Popen(
            [path, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"MOZ_CRASHREPORTER_DISABLE": "1"},
        )
        try:
            options: dict[str, Any] = {"open_timeout": 180, "close_timeout": 180, "ping_interval": None}
            url = f"{_address(process)}/session"
            with connect(url, max_size=None, proxy=None, **options) as connection:
                yield Firefox(connection)
        finally:
            process.terminate()
            process.wait(180)
            assert process.stderr is not None
            process.stderr.close()


@contextmanager
def sound_device(home: Path) -> Iterator[dict[str, str]]:
    """A sound device for a machine without one: Firefox starts no AudioContext before a device runs."""
    path = shutil.which("pulseaudio")
    assert path, "the tests of the page in Firefox need Debian's pulseaudio"
    socket = home / "pulse.socket"
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "PATH": "/usr/bin:/bin"}
    options = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--disable-shm=1", "--use-pid-file=no"]
    modules = ["-L", "module-null-sink", "-L", f"module-native-protocol-unix auth-anonymous=1 socket={socket}"]
    process = subprocess.Popen(
        [path, *options, *modules], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(socket.exists)
        yield environment | {"PULSE_SERVER": f"unix:{socket}"}
    finally:
        process.terminate()
        process.wait(180)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", line):
            return found[1]
    raise AssertionError(f"Firefox ended with code {process.wait()}")
