"""Pages in Chromium, driven by its DevTools protocol over a pair of pipes, which needs no library."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time

NAME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
# The browser reads from 3 and writes to 4. Placed by a process of its own: this one has threads, and must not fork.
_PLACE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """A browser with one page open.

    Attributes:
      requests: addresses that were asked for since the page was opened.
      complaints: errors and warnings of the console since then.
    """

    def __init__(self, read, write):
        self._read, self._write, self._buffer, self._calls = read, write, b"", 0
        self._session = None
        self.requests, self.complaints = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """A command of the protocol; what is reported meanwhile is kept."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._calls:
            self._keep(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self):
        while b"\0" not in self._buffer:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser is gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _keep(self, event):
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(params)
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(params)

    def open(self, path, width=1280, dark=False, scripts=True):
        """The page in a window so many pixels wide, fully loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url="about:blank")
        self.requests, self.complaints = [], []
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for(f"location.href === {path.as_uri()!r} && document.readyState === 'complete'")

    def wait_for(self, condition, seconds=20):
        """Until a condition in JavaScript holds."""
        end = time.monotonic() + seconds
        while not self(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def press(self, key):
        """A key, of that name in the browser's events."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def move_to(self, selector):
        """The pointer, to the middle of what the selector finds first."""
        x, y = self(
            f"(() => {{ const all = document.querySelector({selector!r}); all.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const box = all.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def __call__(self, expression):
        """The value of an expression in JavaScript, which may be a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")


@contextlib.contextmanager
def opened(profile):
    """A browser with its profile in a folder."""
    ours_to_theirs, theirs_to_ours = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours_to_theirs[0], theirs_to_ours[1])]
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", _PLACE, *map(str, ends), NAME, *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=ends,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (*ends, ours_to_theirs[0], theirs_to_ours[1]):
        os.close(end)
    try:
        yield Browser(theirs_to_ours[0], ours_to_theirs[1])
    finally:
        process.terminate()
        process.wait(10)
        os.close(ours_to_theirs[1])
        os.close(theirs_to_ours[0])
