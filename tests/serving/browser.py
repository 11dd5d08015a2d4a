"""A real browser without a display, driven through its own protocol over a pair of pipes: no package is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SECONDS = 60
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
          "--no-first-run", "--remote-debugging-pipe")  # fmt: skip


#: what a message shows of a page that is not as it should be
_STATE = "[document.body.innerText, ...[...document.querySelectorAll('input')].map((one) => one.value)].join('\\n')"


class Browser:
    """One page. Use as a context manager: the process ends with it."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        assert FOUND is not None
        self._profile = tempfile.mkdtemp(prefix="browser")
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        line = [FOUND, *_FLAGS, f"--user-data-dir={self._profile}", f"--window-size={width},{height}", "about:blank"]
        # the protocol is spoken on descriptors 3 and 4
        shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, *line], pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._left, self._number, self._session = b"", 0, ""
        self.errors: list[str] = []

    def __enter__(self) -> Browser:
        pages = [one for one in self._call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        # keys and clicks go to a page that believes it is in front
        self._call("Page.bringToFront")
        self._call("Emulation.setFocusEmulationEnabled", enabled=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(str(answer["params"]["entry"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._read], [], [], _SECONDS)[0], "the browser says nothing"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._left += part
        one, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(one)
        return found

    def go(self, address: str) -> None:
        """Open a page."""
        self._call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        told = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true, and return it; an element is no value, so write ``!!`` before one."""
        end = time.monotonic() + _SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}\n{self.run(_STATE)}\n{self.errors}"
            select.select([], [], [], 0.05)
        return value

    def type(self, place: str, text: str) -> None:
        """Put text into a field as a keyboard would."""
        self.run(f"document.querySelector({json.dumps(place)}).focus()")
        self._call("Input.insertText", text=text)

    def click(self, place: str) -> None:
        """Press the mouse on the middle of an element."""
        # the mouse hits what was painted: two frames later that is what is there
        frames = "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
        box = self.run(
            f"(async () => {{ const e = document.querySelector({json.dumps(place)});"
            " e.scrollIntoView({block: 'center'});"
            f" {frames} const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def look(self, path: Path, width: int, height: int) -> None:
        """A screenshot at a size of the window."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
