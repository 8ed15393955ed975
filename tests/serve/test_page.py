"""The page as a person uses it, in a headless Chromium; skipped where there is none."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from sam2_jax.serve import sample
from tests.parity.reference_scene import scene

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)
SCREENSHOTS = os.environ.get("SAM2_JAX_SCREENSHOTS")  # a folder, to look at them

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        # A container's root has no sandbox.
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, live, monkeypatch):
    """The page with the sample clip open; anything that it complains about fails the test."""
    monkeypatch.setattr(sample, "frames", lambda num_frames=6: list(scene(6, 120, 160)))
    page = browser.new_page(viewport={"width": 1100, "height": 700}, color_scheme="light")
    page.set_default_timeout(60_000)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: is_complaint(said) and complaints.append(said.text))
    page.on("request", lambda asked: assert_local(asked.url, complaints))
    page.goto(str(live.base_url))
    page.wait_for_selector("#picture[data-frame='0']")
    idle(page)
    yield page
    page.close()
    assert not complaints


def is_complaint(said):
    return said.type == "error" and "status of 404" not in said.text  # which the page explains


def assert_local(url, complaints):
    if not url.startswith(("http://127.0.0.1", "data:", "blob:")):
        complaints.append(f"asked for {url}")


def idle(page):
    page.wait_for_selector("body[data-state=idle]")
    return page.inner_text("#message")


def shot(page, name):
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def spot(page, x, y):
    """A place of the picture, given as parts of its sides, in the window."""
    area = page.locator("#marks").bounding_box()
    return area["x"] + x * area["width"], area["y"] + y * area["height"]


def objects_on(page, ids):
    page.wait_for_selector(f"#picture[data-objects='{ids}']")
    return idle(page)


def downloaded(page, kind):
    with page.expect_download() as waiting:
        page.click(f"[data-download='{kind}']")
    return Path(waiting.value.path()).read_bytes()


def test_click_box_track_correct_undo_download(page):
    page.mouse.click(*spot(page, 0.3, 0.45))
    objects_on(page, "1")
    page.fill("#objects input", "disc")
    page.keyboard.press("Enter")
    page.keyboard.press("n")
    page.keyboard.press("3")
    page.mouse.move(*spot(page, 0.6, 0.1))
    page.mouse.down()
    page.mouse.move(*spot(page, 0.85, 0.5), steps=3)
    page.mouse.up()
    objects_on(page, "1,2")
    shot(page, "desktop")

    page.click("#track")
    page.wait_for_selector("#picture[data-frame='5']")
    assert "6 frames tracked" in idle(page)
    page.click("#previous")
    page.wait_for_selector("#picture[data-frame='4'][data-objects='1,2']")
    page.keyboard.press("2")
    page.mouse.click(*spot(page, 0.9, 0.9))  # a correction
    idle(page)
    assert page.inner_text("#frame-number") == "5 / 6"
    page.keyboard.press("Shift+T")
    assert "2 frames tracked" in wait_for_message(page, "frames tracked")

    document = json.loads(downloaded(page, "masks.json"))
    assert document["names"]["1"] == "disc"
    assert len(document["frames"]) == 6
    assert len(zipfile.ZipFile(io.BytesIO(downloaded(page, "masks.zip"))).namelist()) == 6
    assert downloaded(page, "overlay.mp4")[4:8] == b"ftyp"

    for left in ("1,2", "1,2", ""):  # tracking from here, the correction, tracking
        page.click("#undo")
        objects_on(page, left)
    page.reload()
    objects_on(page, "1,2")  # of frame 0: the session is still there
    assert page.input_value("#objects input") == "disc"


def wait_for_message(page, text):
    page.locator("#message", has_text=text).wait_for()
    return idle(page)


def test_the_keyboard_is_enough(page):
    page.focus("#stage")
    for key in ("ArrowLeft", "Shift+ArrowLeft", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    objects_on(page, "1")
    page.keyboard.press("3")
    page.keyboard.press("n")
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Enter")
    objects_on(page, "1,2")
    page.keyboard.press("t")
    assert "6 frames tracked" in wait_for_message(page, "frames tracked")
    page.keyboard.press("z")
    objects_on(page, "")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    page.wait_for_selector("#picture[data-frame='0']")
    page.keyboard.press("Delete")
    objects_on(page, "1")
    assert page.locator("#objects li").count() == 1


def test_a_phone_in_the_dark(page):
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 375, "height": 740})
    page.wait_for_timeout(100)
    page.mouse.click(*spot(page, 0.3, 0.45))
    objects_on(page, "1")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 375, "the page is wider than the window"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, background[4:-1].split(","))) < 60
    shot(page, "phone_dark")


def test_a_dropped_file_and_a_wrong_one(page, picture, video):
    page.set_input_files("#file", {"name": "p.png", "mimeType": "image/png", "buffer": picture})
    page.locator("#video-name", has_text="p.png").wait_for()
    idle(page)
    assert page.is_disabled("#track")
    drop = """bytes => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "dropped.mp4"));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }"""
    page.evaluate(drop, list(video))
    page.locator("#video-name", has_text="dropped.mp4").wait_for()
    idle(page)
    assert page.inner_text("#frame-number") == "1 / 6"


def test_a_lost_session_is_explained(page, live):
    session = page.evaluate("location.hash.slice(1)")
    live.delete(f"/api/sessions/{session}")
    page.mouse.click(*spot(page, 0.3, 0.45))
    assert "Open the video again" in wait_for_message(page, "no such session")
