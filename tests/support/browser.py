"""A headless Chromium that a test drives through the DevTools protocol, over a pipe, with the standard
library only.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
MISSING = (
    "no Chromium on this machine: the page was not opened in a browser (Debian: apt-get install chromium)"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


class Browser:
    """A context manager.

    `complaints` gathers what the pages logged as warnings and errors, policy violations and failed loads
    among them.
    """

    def __init__(self, profile: Path):
        self.profile, self.complaints, self.requests = profile, [], []
        self._number, self._buffer, self._session = 0, b"", None

    def __enter__(self) -> Browser:
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()

        def hand_over() -> None:  # the browser reads commands from 3 and writes answers to 4
            high = os.dup(commands), os.dup(answers)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [str(BROWSER), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            preexec_fn=hand_over,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        page = next(
            target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"
        )
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command.

        AssertionError when the browser refuses it or does not answer within a minute.
        """
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | (
            {"sessionId": self._session} if self._session else {}
        )
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self, patience_s: float = 60.0) -> dict[str, Any]:
        end = time.monotonic() + patience_s
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._from, 1 << 20) if ready else b""
            assert data, "the browser ended or does not answer"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        if message.get("method") == "Log.entryAdded" and about["entry"]["level"] in ("warning", "error"):
            self.complaints.append(about["entry"]["text"])
        elif message.get("method") in ("Runtime.exceptionThrown", "Network.loadingFailed") or (
            message.get("method") == "Runtime.consoleAPICalled" and about["type"] in ("warning", "error")
        ):
            self.complaints.append(json.dumps(about)[:500])
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])

    def size(self, width: int, height: int) -> None:
        """Set the window's size in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def open(self, uri: str) -> None:
        """Load a page and wait until all of it is there."""
        self.call("Page.navigate", url=uri)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page; the page's policy does not bind this."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer.get("exceptionDetails")
        return answer["result"].get("value")

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of the window, or of the whole page."""
        return base64.b64decode(
            self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        )

    def pdf(self) -> bytes:
        """The page as it prints on A4."""
        return base64.b64decode(
            self.call(
                "Page.printToPDF",
                paperWidth=8.27,
                paperHeight=11.69,
                printBackground=False,
                preferCSSPageSize=True,
            )["data"]
        )
