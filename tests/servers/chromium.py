"""Runs Chromium without a window and opens pages in it: says what a reader would find wrong with them.

It is driven over a pipe by its own protocol (https://chromedevtools.github.io/devtools-protocol), so no library is
needed, and no port. One process shows all pages, one after the other.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.servers.programs import find_program

WIDTHS = (1280, 400)
_MOST_SECONDS = 120.0
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-default-apps", "--no-zygote", "--single-process"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
)
_LOOK = """(async () => {
  document.querySelectorAll('details').forEach(one => { one.open = true; });
  const images = [...document.images];
  await Promise.all(images.map(one => one.decode().catch(() => {})));
  const names = new Set([...document.querySelectorAll('[id]')].map(one => one.id));
  const links = [...document.querySelectorAll('a[href]')].map(one => one.getAttribute('href'));
  return {
    images: images.length,
    absent: images.filter(one => !one.naturalWidth).map(one => one.alt),
    width: document.scrollingElement.scrollWidth,
    wide: [...document.querySelectorAll('main *')].filter(one => !one.closest('.wide, pre, svg')
      && one.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map(one => one.outerHTML.slice(0, 120)),
    scrolling: [...document.querySelectorAll('.wide')].filter(one => one.scrollWidth > one.clientWidth + 1)
      .map(one => one.innerText.slice(0, 60)),
    dangling: links.filter(one => one.startsWith('#') && !names.has(one.slice(1))),
    links: links.filter(one => !one.startsWith('#')),
    text: document.body.innerText,
  };
})()"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A page as a reader finds it."""

    images: int
    links: tuple[str, ...]
    """To other pages."""
    text: str
    faults: tuple[str, ...]
    """What is wrong, one sentence each; nothing where all is well."""


@dataclass(slots=True)
class _Heard:
    """What the browser told of a page while it was opened."""

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    loaded: bool = False


class Chromium:
    """A browser; use it as a context."""

    def __init__(self) -> None:
        self._program = find_program("chromium")
        self._number, self._buffer, self._heard, self._session = 0, b"", _Heard(), ""

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="chromium")
        (commands, self._out), (self._in, events) = _make_pipe(), _make_pipe()
        line = f'exec "$@" 3<&{commands} 4>&{events}'  # the browser expects these numbers
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", self._program, *_FLAGS, f"--user-data-dir={self._folder}"],
            pass_fds=(commands, events),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": self._folder, "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
        )
        os.close(commands)
        os.close(events)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)  # it ends where nobody commands it
        os.close(self._in)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # with what its start script has started
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, path: Path, pictures: Path | None = None) -> Opened:
        """Open a page at each width and look at it.

        Parameters
        ----------
        pictures
            Folder for a picture of the whole page at each width, for people.
        """
        url, faults, found = path.resolve().as_uri(), [], {}
        for width in WIDTHS:
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            self._ask("Emulation.setDeviceMetricsOverride", **size)
            self._heard = _Heard()
            self._ask("Page.navigate", url=url)
            self._wait(lambda: self._heard.loaded)
            answer = self._ask("Runtime.evaluate", expression=_LOOK, awaitPromise=True, returnByValue=True)
            found = answer["result"]["value"]
            faults += [f"at {width} pixels: {fault}" for fault in _list_faults(found, self._heard, url, width)]
            if pictures is not None:
                shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
                (pictures / f"{path.stem}-{width}.png").write_bytes(base64.b64decode(shot["data"]))
        return Opened(
            images=found["images"], links=tuple(found["links"]), text=found["text"], faults=tuple(dict.fromkeys(faults))
        )

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answers: list[dict[str, Any]] = []
        self._wait(lambda: bool(answers), answers)
        if "error" in answers[0]:
            raise RuntimeError(f"Chromium refuses {method}: {answers[0]['error']['message']}")
        result: dict[str, Any] = answers[0]["result"]
        return result

    def _wait(self, until: Any, answers: list[dict[str, Any]] | None = None) -> None:
        """Read what the browser says until something is so."""
        late = time.monotonic() + _MOST_SECONDS
        while not until():
            message, end, rest = self._buffer.partition(b"\0")
            if end:
                self._buffer = rest
                self._note(json.loads(message), answers)
                continue
            if not select.select([self._in], [], [], max(late - time.monotonic(), 0))[0]:
                raise TimeoutError(f"Chromium has said nothing for {_MOST_SECONDS:g} s.")
            got = os.read(self._in, 1 << 20)
            if not got:
                raise RuntimeError(f"Chromium has ended, with status {self._process.wait()}.")
            self._buffer += got

    def _note(self, message: dict[str, Any], answers: list[dict[str, Any]] | None) -> None:
        if message.get("id") == self._number and answers is not None:
            answers.append(message)
        name, said = message.get("method"), message.get("params", {})
        if name == "Page.loadEventFired":
            self._heard.loaded = True
        elif name == "Network.requestWillBeSent":
            self._heard.requests.append(said["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self._heard.errors.append(said["exceptionDetails"]["text"])
        elif name == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self._heard.errors.append(said["entry"]["text"])
        elif name == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert", "warning"):
            self._heard.errors.append(str([one.get("value") for one in said["args"]]))


def _make_pipe() -> tuple[int, int]:
    """Make a pipe whose ends have numbers that are neither 3 nor 4."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _list_faults(found: dict[str, Any], heard: _Heard, url: str, width: int) -> list[str]:
    faults = [f"the picture {alt!r} is not there." for alt in found["absent"]]
    faults += [f"the browser says: {error}" for error in heard.errors]
    faults += [f"it asks for {one[:200]}." for one in heard.requests if one != url and not one.startswith("data:")]
    faults += [f"the link {link} leads nowhere." for link in found["dangling"]]
    if found["width"] > width:
        faults.append(f"it is {found['width']} pixels wide, because of {found['wide']}.")
    if width == min(WIDTHS):
        faults += [f"the table {words!r} scrolls sideways." for words in found["scrolling"]]
    return faults
