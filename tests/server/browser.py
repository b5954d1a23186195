"""Drives headless Chromium over its debugging pipe (descriptors 3 and 4, messages ended by NUL): tests need no driver package."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Page:
    """One page of one browser."""

    def __init__(self, writer: int, reader: int) -> None:
        self._writer, self._reader = writer, reader
        self._rest = b""
        self._number = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            head, nul, rest = self._rest.partition(b"\0")
            if not nul:
                piece = os.read(self._reader, 1 << 20)
                assert piece, "the browser ended"
                self._rest += piece
                continue
            self._rest = rest
            answer = json.loads(head)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"did not become true in {seconds} s: {condition}")
            time.sleep(0.05)

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Escape": 27, "Tab": 9}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A page in headless Chromium; skips the test where there is none."""
    path = next((found for found in map(shutil.which, NAMES) if found and _answers(found)), None)
    if path is None:
        pytest.skip("needs Chromium (looked for a chromium, chromium-browser or google-chrome in PATH that answers --version)")
    to_browser, from_browser = os.pipe(), os.pipe()
    fds = (to_browser[0], from_browser[1])
    # bash (dash knows one-digit descriptors only) moves the two pipe ends to descriptors 3 and 4, which Chromium expects.
    options = "--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run --window-size=1280,860"
    command = ["bash", "-c", f'exec "$0" {options} --user-data-dir="$1" 3<&{fds[0]} 4>&{fds[1]}', path, str(profile)]
    process = subprocess.Popen(command, pass_fds=fds, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for fd in fds:
        os.close(fd)
    try:
        yield Page(to_browser[1], from_browser[0])
    finally:
        process.terminate()
        process.wait(20)
        os.close(to_browser[1])
        os.close(from_browser[0])


def _answers(path: str) -> bool:
    return subprocess.run([path, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0
