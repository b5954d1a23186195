"""The page in a real browser: chat, Stop, new chat, keyboard, snippets and the dashboard, with nothing from outside."""

import base64
import os
from pathlib import Path

import pytest
from tests.fleet.doubles import Script, ScriptedFleet
from tests.server.browser import chromium
from tests.server.scripted import byte_model, serving

from headway.fleet.ticket import FleetRequest

PAGE = Path(__file__).parents[2] / "src" / "headway" / "server" / "page.html"


def script(request: FleetRequest) -> Script:
    if bytes(request.token_ids).endswith(b"user: long\nassistant:"):
        return Script(token_ids=tuple(b"On and on. " * 40), gap_s=0.03, finish="length")
    return Script(token_ids=tuple(b"Hello, <b>you</b>!"), gap_s=0.01)


def test_the_page_names_no_other_host() -> None:
    text = PAGE.read_text()
    assert "http://" not in text and "https://" not in text and "src=" not in text and "@import" not in text


@pytest.mark.slow
def test_chat_and_dashboard(tmp_path: Path) -> None:
    with serving(ScriptedFleet(script), {"tiny": byte_model()}) as server, chromium(tmp_path) as page:
        page.call("Page.navigate", url=server.url + "/")
        page.until("document.readyState === 'complete' && document.getElementById('model').textContent.includes('tiny')")
        assert page.run("document.getElementById('max').value") == "512"
        page.run("document.getElementById('max').value = 400")
        assert page.run("document.activeElement.id") == "text"
        page.call("Input.insertText", text="Hi there")
        page.press("Enter")
        page.until("document.querySelector('.assistant .kept') !== null")
        assert page.run("document.querySelector('.assistant span').textContent") == "Hello, <b>you</b>!"
        note = page.run("document.querySelector('.assistant .note').textContent")
        assert "first word" in note and "tokens/s" in note and "promise kept" in note
        page.run("document.getElementById('cls').value = 'background'")
        page.call("Input.insertText", text="long")
        page.press("Enter")
        page.until(
            "document.querySelectorAll('.assistant').length === 2 && document.querySelectorAll('.assistant')[1].innerText.length > 30"
        )
        page.until("document.getElementById('v-open').textContent === '1'")
        if folder := os.environ.get("HEADWAY_SCREENSHOTS"):
            for scheme in ("light", "dark"):
                page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                shot = page.call("Page.captureScreenshot")["data"]
                (Path(folder) / f"page-{scheme}.png").write_bytes(base64.b64decode(shot))
        page.press("Escape")
        page.until("document.querySelectorAll('.assistant .note')[1].textContent.includes('stopped')")
        server.until(lambda: not server.fleet.open(), "Stop frees the request")
        assert server.fleet.requests[1].slo.cls == "background"
        assert page.run("document.querySelectorAll('svg path').length") >= 5
        assert server.url in page.run("document.getElementById('curl').textContent + document.getElementById('python').textContent")
        page.run("document.getElementById('new').click()")
        assert page.run("document.querySelectorAll('.m').length") == 0
