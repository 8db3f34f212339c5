"""The studio in a browser: Chromium without a window, by Playwright, on a tiny model in this process."""

import base64
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_letters import small_model
from test_studio_tasks import tiny_model

from jdiff import images, views
from jdiff.cli import main as cli
from jdiff.studio import results, tasks

CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None] + ["chromium"] * (CHROMIUM is None)
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore"),  # those of Gradio and its packages
]
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
PATIENCE = 120_000  # milliseconds; the machine may be busy
PACE = [0.0]  # seconds that a row takes longer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A studio and its address, whose runs can be slowed down."""
    from jdiff.studio import app, flow

    models = results.Models("mini", {"mini": tiny_model(), "letters": small_model()})
    here = app.studio("mini", models)
    here.letters = "letters"
    plain = flow.draw

    def paced(models, task, watch):
        return plain(models, task, lambda *told: (time.sleep(PACE[0]), watch(*told)))

    patch = pytest.MonkeyPatch()
    patch.setattr(flow, "draw", paced)
    patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which launching changes
    address, close = app.launch(here, port=free_port(), folder=tmp_path_factory.mktemp("uploads"))
    yield here, address
    close()
    patch.undo()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.fixture
def page(server, browser):
    """A page of a session of its own; the test fails if a script fails, or if another host is asked."""
    PACE[0] = 0.0
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    wrong = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: local(request.url) or wrong.append(request.url))
    visit(opened, server[1])
    yield opened
    PACE[0] = 0.0
    context.close()
    assert not wrong


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def local(url):
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def visit(page, address):
    page.goto(address)
    page.locator(".jd-go:visible").wait_for(timeout=PATIENCE)


def tab(page, name):
    page.get_by_role("tab", name=name).click()
    page.get_by_role("tab", name=name, selected=True).wait_for()


def press(page, kind=".jd-go"):
    page.locator(f"{kind}:visible").click()


def finished(page, text=""):
    """Waits for a result with this text; returns its element."""
    place = page.locator(".jd-result:visible", has=page.locator("a.jd-link"), has_text=text)
    place.wait_for(timeout=PATIENCE)
    return place


def decoded(url):
    """The pixels of a data URL, [h w 3] in [-1, 1]."""
    kind, data = url.split(",", 1)
    assert kind.startswith("data:image/")
    return images.on_white(images.decode(base64.b64decode(data)))


def pictures(place):
    return [decoded(image.get_attribute("src")) for image in place.locator(".jd-stage img").all()]


def downloads(place):
    """{file name: data URL}."""
    return {link.get_attribute("download"): link.get_attribute("href") for link in place.locator("a.jd-link").all()}


def stroke(page, points):
    """Draws a line on the canvas, through points in parts of its square."""
    canvas = page.locator(".jd-canvas:visible canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    box = canvas.bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    place = lambda point: (left + point[0] * side, top + point[1] * side)
    page.mouse.move(*place(points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*place(point), steps=5)
    page.mouse.up()


def waited(holds, seconds=20.0):
    """Whether something holds within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


def quietly(done, total, x=None):
    """A watch that does nothing."""


def test_a_drawing_is_edited(page, server):
    tab(page, "Edit")
    look = page.locator(".jd-look:visible img")
    stroke(page, [(0.3, 0.3), (0.6, 0.3), (0.5, 0.6)])
    look.wait_for(timeout=PATIENCE)
    red = lambda: decoded(look.get_attribute("src"))[..., 0].mean() > -0.95
    assert waited(red)
    press(page)
    place = finished(page)
    original, *made = pictures(place)
    assert original.shape == (32, 32, 3) and (original[..., 0] > 0.9).sum() > 20 and original[..., 1:].max() < -0.9
    common = tasks.Common(n=4, steps=4, guidance=2.0)
    wanted = results.draw(server[0].models, tasks.edit(common, original, ["a red three"], 0.7), quietly)
    assert len(made) == 4
    for picture, image in zip(made, wanted.images[0], strict=True):
        np.testing.assert_allclose(picture, image, atol=1.01 / 127.5)
    press(page, ".jd-also")
    place = finished(page, "strength 0.9")
    assert len(pictures(place)) == 1 + len(tasks.LADDER)


def test_a_painted_mask_is_inpainted(page):
    tab(page, "Inpaint")
    page.locator("button:visible", has_text="Example").click()
    looks = page.locator(".jd-look:visible img")
    looks.first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(500)
    stroke(page, [(0.4, 0.6), (0.6, 0.6)])
    grey = lambda: (np.abs(decoded(looks.nth(1).get_attribute("src"))) < 0.02).all(axis=-1).sum() > 20
    assert waited(grey)
    press(page)
    place = finished(page)
    original, _, *made = pictures(place)
    mask = next(decoded(url)[..., 0] > 0 for name, url in downloads(place).items() if name.startswith("mask-"))
    assert 20 < mask.sum() < 700 and len(made) == 4
    for picture in made:
        np.testing.assert_array_equal(picture[~mask], original[~mask])
        assert np.abs(picture[mask] - original[mask]).mean() > 0.05
    page.get_by_label("RePaint's resampling").check()
    PACE[0] = 0.2  # so that a step is seen
    press(page)
    page.locator(".jd-live:visible", has_text=re.compile(r"of \d\d")).wait_for(timeout=PATIENCE)
    finished(page)


def test_an_anagram_is_played(page):
    tab(page, "Illusions")
    view = page.get_by_label("is seen").locator("visible=true").nth(1)
    view.click()
    page.get_by_role("option", name="jigsaw").click()
    page.locator("button:visible", has_text="Add a prompt").click()
    third = page.get_by_label("Prompt 3").locator("visible=true")
    third.fill("a yellow zero")
    press(page)
    place = finished(page)
    assert place.locator("figcaption").first.inner_text().startswith("1. ")  # ranked by the judge
    first = pictures(place)[0]
    chips = place.locator('[data-jd="view"]')
    assert chips.count() == 3
    chips.nth(2).click()  # a quarter turn to the right
    picture = place.locator(".jd-stage img").first
    turned = lambda: picture.evaluate("e => getComputedStyle(e).transform")
    assert waited(lambda: [round(float(n)) for n in re.findall(r"-?[\d.]+(?:e-\d+)?", turned())[:4]] == [0, 1, -1, 0])
    chips.nth(1).click()
    read = """e => { const c = e.querySelector('canvas'); if (!c) return null;
        const pen = c.getContext('2d'), zoom = c.width / 32;
        return [...Array(1024).keys()].map((k) =>
            [...pen.getImageData((k % 32) * zoom + 2, Math.floor(k / 32) * zoom + 2, 1, 1).data].slice(0, 3)); }"""
    wanted = images.to_uint8(np.asarray(views.jigsaw().apply(first)))
    stage = place.locator(".jd-stage").first

    def moved():
        pixels = stage.evaluate(read)
        return pixels is not None and np.array_equal(np.reshape(pixels, (32, 32, 3)), wanted)

    assert waited(moved)
    chips.nth(0).click()
    assert waited(lambda: stage.locator("canvas").count() == 0)
    button = place.locator('[data-jd="turn"]')
    button.click()
    assert waited(lambda: chips.nth(0).get_attribute("class") == "jd-button")  # it has moved on
    assert button.inner_text() == "Pause"


def test_a_word_is_turned(page):
    tab(page, "Ambigrams")
    page.get_by_label("Word", exact=True).fill("on")
    page.get_by_label("What it reads as").fill("no")
    press(page)
    place = finished(page)
    place.locator('[data-view="rotate_180"]').click()
    picture = place.locator(".jd-stage img")
    matrix = lambda: picture.evaluate("e => getComputedStyle(e).transform")
    assert waited(lambda: [round(float(n)) for n in re.findall(r"-?[\d.]+(?:e-\d+)?", matrix())[:1]] == [-1])


def test_the_words_are_buttons_and_the_result_is_made_again(page, tmp_path):
    page.get_by_role("radio", name="seven").check(force=True)
    page.get_by_role("radio", name="blue").check(force=True)
    box = page.get_by_label("Prompts, one a line").locator("visible=true")
    assert waited(lambda: box.input_value() == "a blue seven")
    press(page)
    place = finished(page, "a blue seven")
    before = pictures(place)
    box.fill("a red one")  # again means the result, not the inputs
    press(page, ".jd-again")
    place = finished(page, "Drawn again: the same picture, pixel for pixel.")
    for old, new in zip(before, pictures(place), strict=True):
        np.testing.assert_array_equal(old, new)
    page.locator("button:visible", has_text="The same as a command").click()
    command = page.locator(".cm-content:visible").first
    assert waited(lambda: command.inner_text().strip() == "jdiff generate 'a blue seven' --steps 4 --guidance 2.0")
    (tmp_path / "made.png").write_bytes(base64.b64decode(downloads(place)["jdiff-generate-0.png"].split(",")[1]))
    assert images.read_settings(tmp_path / "made.png")["prompts"] == ["a blue seven"]
    slider = place.locator('[data-jd="step"]')
    slider.evaluate("e => { e.value = 0; e.dispatchEvent(new Event('input', {bubbles: true})); }")
    assert "jd-scrubbing" in (place.get_attribute("class") or "")


def started_slowly(page):
    PACE[0] = 0.4
    page.get_by_text("More settings").locator("visible=true").click()
    steps = page.get_by_label("number input for Steps").locator("visible=true")
    steps.fill("60")
    steps.press("Tab")
    page.wait_for_timeout(500)  # until the page has taken the number
    press(page)
    page.locator(".jd-live:visible", has_text="of 60").wait_for(timeout=PATIENCE)


def test_a_run_is_cancelled_in_the_middle(page, server):
    started_slowly(page)
    assert server[0].stops.going_on() == 1
    press(page, ".jd-stop")
    page.locator(".jd-empty:visible", has_text="Stopped.").wait_for(timeout=10_000)
    assert waited(lambda: server[0].stops.going_on() == 0, 5)
    PACE[0] = 0.0
    press(page)
    finished(page, "a red three")


@pytest.mark.parametrize("how", ["reload", "close"])
def test_a_page_that_goes_away_stops_its_run(page, server, how):
    started_slowly(page)
    assert server[0].stops.going_on() == 1
    if how == "close":
        page.close()
    else:
        page.reload()
    assert waited(lambda: server[0].stops.going_on() == 0)
    if how == "reload":
        PACE[0] = 0.0
        page.locator(".jd-go:visible").wait_for(timeout=PATIENCE)
        assert page.locator(".jd-empty:visible").count() == 1  # nothing of the other session
        press(page)
        finished(page, "a red three")


def test_two_sessions_at_once(page, server, browser):
    context = browser.new_context()
    other = context.new_page()
    visit(other, server[1])
    PACE[0] = 0.15
    texts = {page: "a green two", other: "a cyan five"}
    for one, text in texts.items():
        one.get_by_label("Prompts, one a line").locator("visible=true").fill(text)
        press(one)
    made = {}
    for one, text in texts.items():
        place = finished(one, text)
        assert not [word for word in texts.values() if word != text and word in place.inner_html()]
        made[one] = pictures(place)
    PACE[0] = 0.0
    common = tasks.Common(n=4, steps=4, guidance=2.0)
    for one, text in texts.items():
        wanted = results.draw(server[0].models, tasks.generate(common, [text]), quietly).images[0]
        for picture, image in zip(made[one], wanted, strict=True):
            np.testing.assert_allclose(picture, image, atol=1.01 / 127.5)
    # what is drawn last stays in its session
    third = context.new_page()
    visit(third, server[1])
    tab(third, "Edit")
    third.locator("button:visible", has_text="Latest").click()
    third.get_by_text("nothing is drawn yet").locator("visible=true").wait_for(timeout=PATIENCE)
    context.close()


def test_an_upload_is_bounded_and_opened(page):
    tab(page, "Edit")
    look = page.locator(".jd-look:visible img")
    chooser = page.locator("input[type=file]").filter(visible=False)
    uploads = page.locator("button:visible", has_text="Open")

    def upload(width, height, colour):
        file = io.BytesIO()
        Image.new("RGB", (width, height), colour).save(file, "PNG")
        with page.expect_file_chooser() as found:
            uploads.click()
        found.value.set_files({"name": "my.png", "mimeType": "image/png", "buffer": file.getvalue()})

    assert chooser.count() > 0
    upload(6000, 4100, "blue")
    page.get_by_text("at most 24 megapixels, got 6000 x 4100").locator("visible=true").wait_for(timeout=PATIENCE)
    upload(60, 40, "blue")
    assert waited(lambda: look.count() > 0 and np.allclose(decoded(look.get_attribute("src")), [-1, -1, 1], atol=0.02))


def test_a_picture_is_taken_by_a_camera_or_from_the_clipboard(server, browser):
    """Chromium's own camera shows a light green disc on green."""
    context = browser.new_context(permissions=["camera", "clipboard-read", "clipboard-write"])
    page = context.new_page()
    visit(page, server[1])
    tab(page, "Edit")
    look = page.locator(".jd-look:visible img")
    seen = lambda: decoded(look.get_attribute("src")).mean((0, 1)) if look.count() else np.zeros(3)
    button = page.get_by_role("button", name="Camera", exact=True).locator("visible=true")
    taker = page.locator(".jd-camera:visible")
    button.click()
    taker.get_by_text("Click to Access Webcam").click()
    film = taker.locator("video")
    assert waited(lambda: film.count() > 0 and film.evaluate("e => e.readyState > 2 && e.currentTime > 0.2"))
    taker.get_by_label("capture photo").click()
    assert waited(lambda: seen()[1] > 0 and (seen()[[0, 2]] < -0.3).all(), 60), seen()
    assert waited(lambda: taker.count() == 0)
    page.evaluate("""async () => {
        const c = Object.assign(document.createElement('canvas'), {width: 60, height: 40});
        const pen = c.getContext('2d');
        pen.fillStyle = 'blue';
        pen.fillRect(0, 0, 60, 40);
        const blob = await new Promise((done) => c.toBlob(done));
        await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
    }""")
    button.click()
    taker.get_by_label("Paste from clipboard").click()
    assert waited(lambda: np.allclose(seen(), [-1, -1, 1], atol=0.02), 60), seen()
    assert waited(lambda: taker.count() == 0)
    button.click()
    taker.wait_for()
    button.click()
    assert waited(lambda: taker.count() == 0)
    context.close()


def test_what_is_wrong_is_told_on_the_page(page):
    page.get_by_label("Prompts, one a line").locator("visible=true").fill("")
    press(page)
    page.locator(".jd-trouble:visible", has_text="no prompt is given").wait_for(timeout=PATIENCE)
    tab(page, "Hybrids")
    press(page, ".jd-again")
    page.locator(".jd-trouble:visible", has_text="nothing is drawn yet").wait_for(timeout=PATIENCE)


def test_without_a_public_address_a_note_says_why(tmp_path, monkeypatch, capsys):
    from jdiff.studio import app

    class Blocks:
        """Gradio's page, as it is without a connection."""

        queue = lambda self, **how: self
        close = None

        def launch(self, **how):
            print("\nCould not create share link.\nPlease check your internet connection.")
            return None, "http://127.0.0.1:7860/", None

    monkeypatch.setattr(app.pages, "build", lambda here: Blocks())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    assert app.launch(None, share=True, folder=tmp_path)[0] == "http://127.0.0.1:7860/"
    told = "Could not create share link. Please check your internet connection."
    said = "jdiff: note: --share: there is no public address, so only this machine can open the page; "
    assert capsys.readouterr() == ("", f"{said}{told}\n")


def test_a_phone_needs_no_scrolling_sideways(server, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    visit(page, server[1])
    for _ in range(2):
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390
        press(page)
        finished(page)
    context.close()


def test_a_port_in_use_is_one_line(server, capsys):
    port = int(server[1].rstrip("/").rsplit(":", 1)[1])
    assert cli.main(["studio", "--port", str(port)]) == 2
    error = capsys.readouterr().err.strip()
    assert error == f"jdiff: --port {port} is in use; give another, such as --port {port + 1}, or end what uses it"


def test_the_command_serves_on_this_machine_alone_and_ends_by_a_signal():
    port = free_port()
    root = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "jdiff", "studio", "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    threading.Timer(PATIENCE / 1000, process.kill).start()
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"jdiff studio is at http://127.0.0.1:{port}/ - Ctrl-C ends it\n", process.communicate()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
        assert b"jdiff studio" in answer.read()
    folders = lambda: list(Path(tempfile.gettempdir()).glob(f".jdiff-{process.pid}-*"))
    assert len(folders()) == 1 and folders()[0].stat().st_mode & 0o077 == 0
    with socket.socket() as outside, pytest.raises(OSError):  # another address of this machine
        outside.settimeout(2)
        outside.connect(("127.0.0.2", port))
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert "Traceback" not in process.stderr.read() and not folders()


def test_a_run_that_waits_can_be_stopped_too(page, server, browser):
    started_slowly(page)
    context = browser.new_context()
    other = context.new_page()
    visit(other, server[1])
    press(other)
    other.wait_for_timeout(1500)
    assert page.locator(".jd-live").count() == 1, page.locator(".jd-place").first.inner_text()
    assert server[0].stops.going_on() == 1 and other.locator(".jd-live").count() == 0
    press(other, ".jd-stop")
    other.locator(".jd-empty:visible", has_text="Stopped.").wait_for(timeout=10_000)
    press(page, ".jd-stop")
    assert waited(lambda: server[0].stops.going_on() == 0, 5)
    other.wait_for_timeout(2000)
    assert server[0].stops.going_on() == 0 and other.locator(".jd-live").count() == 0
    context.close()
