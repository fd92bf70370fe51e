"""A headless Chromium, driven over its own debugging pipe: real keys, real taps, real downloads."""

from __future__ import annotations

import base64
import json
import os
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


class Browser:
    """One page of one browser; use it in a `with` block."""

    def __init__(self, folder: Path):
        self.folder, self.count, self.buffer, self.session = folder, 0, b"", None
        to_child, self.write = os.pipe()
        self.read, from_child = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
            " --disable-background-networking --disable-component-update --disable-sync"
            " --disable-quic --remote-debugging-pipe"
            f" --user-data-dir={shlex.quote(str(folder / 'profile'))} about:blank"
        )
        self.process = (
            subprocess.Popen(  # the browser reads commands from descriptor 3 and answers on 4
                ["bash", "-c", f"exec {CHROMIUM} {flags} 3<&{to_child} 4>&{from_child}"],
                pass_fds=(to_child, from_child),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        os.close(to_child), os.close(from_child)

    def __enter__(self) -> Browser:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        self.call("Page.enable")
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.read), os.close(self.write)

    def call(self, method: str, **params) -> dict:
        """A command of the DevTools protocol and its answer."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session and not method.startswith(
            ("Target", "Browser")
        ):  # these are the whole browser's
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            while b"\0" not in self.buffer:
                ready, _, _ = select.select([self.read], [], [], max(0, until - time.monotonic()))
                data = os.read(self.read, 1 << 16) if ready else b""
                if not data:
                    raise RuntimeError(f"the browser did not answer {method}")
                self.buffer += data
            answer, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(answer)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, page: Path | str) -> None:
        """Show a file or an address, or show it anew, and wait until it has loaded."""
        before = self.value("performance.timeOrigin")
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self.wait(f"performance.timeOrigin !== {before} && document.readyState === 'complete'")

    def before_scripts(self, source: str) -> None:
        """Run JavaScript in every page opened from now on, before its own."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=source)

    def value(self, expression: str):
        """What a JavaScript expression is in the page."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 20.0) -> None:
        """Until an expression is true."""
        until = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.05)

    def key(self, name: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field."""
        self.value(f"(e => {{ e.focus(); e.select(); }})(document.querySelector('{selector}'))")
        self.call("Input.insertText", text=text)

    def tap(self, selector: str) -> None:
        """Touch the middle of an element."""
        box = self.value(
            f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block:"
            " 'center'}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y +"
            " r.height / 2]; })()"
        )
        self.call(
            "Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": box[0], "y": box[1]}]
        )
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def download(self, selector: str) -> Path:
        """Click an element and return the file that it saves."""
        folder = self.folder / "downloads"
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.value(f"document.querySelector('{selector}').click()")
        until = time.monotonic() + 20
        while not (found := list(folder.glob("*.json"))):
            assert time.monotonic() < until, "nothing was saved"
            time.sleep(0.05)
        return found[0]

    def screenshot(self, path: Path) -> None:
        """What the page looks like, as PNG."""
        path.write_bytes(
            base64.b64decode(
                self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            )
        )
