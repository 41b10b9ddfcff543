"""The page: its results for photographs, and its use in a headless Chromium with a local server.

The tests with a browser need gradio, playwright and Debian's chromium (`.ci/run` installs it where it may).
"""

import io
import pathlib
import shutil
import types

import numpy as np
import pytest
import skimage.data
from PIL import Image

from fmboost_jax import web
from fmboost_jax.boosting import interactive
from fmboost_jax.boosting.booster import Booster
from fmboost_jax.errors import InputError
from fmboost_jax.images.png import read_settings

# Flags that keep Chromium from looking for its maker's servers.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def booster():
    return Booster.load("photo-x2")


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("photograph") / "coffee.png"
    Image.fromarray(skimage.data.coffee()[200:248, 200:248]).save(path)
    return path


def test_a_photograph_with_all_settings(booster, photograph):
    reports = []
    settings = interactive.Settings(passes=2, steps=1, seed=3, noise_step=100, colour_fix="adain")
    boosted = interactive.boost_photograph(
        booster, "photo-x2", photograph, settings, max_side=64, report=lambda *words: reports.append(words)
    )
    assert boosted.before.shape == boosted.after.shape == (192, 192, 3)
    expected = {"checkpoint": "photo-x2 → photo-x2", "factor": 4, "steps": 1, "seed": 3, "noise_step": 100}
    assert {**boosted.settings, **expected, "colour_fix": "adain"} == boosted.settings
    assert [text for _, text in reports] == ["Boosting to 96×96", "Boosting to 192×192"]
    small = np.asarray(Image.open(photograph), np.float32)
    np.testing.assert_allclose(boosted.after.mean((0, 1)), small.mean((0, 1)), atol=2)


def test_bad_photographs_and_options_are_refused(booster, photograph, tmp_path):
    common = {"report": lambda *_: None}
    with pytest.raises(InputError, match="48×48 pixels: the longest side may have 40"):
        interactive.boost_photograph(booster, "b", photograph, interactive.Settings(), max_side=40, **common)
    broken = tmp_path / "broken.png"
    broken.write_bytes(photograph.read_bytes()[:300])
    with pytest.raises(InputError, match="cannot be read as a photograph"):
        interactive.boost_photograph(booster, "b", broken, interactive.Settings(), max_side=64, **common)
    with pytest.raises(InputError, match="--max-side must be"):
        web.main(["--max-side", "0"])
    with pytest.raises(InputError, match=r"--password-file .* cannot be read"):
        web.main(["--password-file", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)]
)
def test_an_open_page_without_a_password_gives_a_warning(host, local, monkeypatch, capsys):
    monkeypatch.setattr(web, "Booster", types.SimpleNamespace(load=lambda path: None))
    monkeypatch.setattr(web, "build_page", lambda *_, **__: None)
    monkeypatch.setattr(web, "serve", lambda *_, **__: None)
    web.main(["--host", host])
    assert ("warning: everyone who can reach" in capsys.readouterr().err) is not local


@pytest.fixture(scope="module")
def address(booster):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'fmboost_jax[web]'")
    page = web.build_page({"photo-x2": booster}, max_side=64)
    yield web.serve(page, block=False, max_upload=0.1)
    page.close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here; apt-get install chromium, or make it known to PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_tab(browser, address):
    """Function () → a tab with the page; afterwards, no tab may have asked another machine or met an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    context.set_default_timeout(60_000)
    requests, problems = [], []

    def open_one():
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.goto(address)
        tab.wait_for_selector("#boost")
        return tab

    yield open_one
    context.close()
    assert requests
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert problems == []


def test_a_browser_uploads_boosts_compares_and_downloads(open_tab, photograph, tmp_path):
    tab, other = open_tab(), open_tab()
    for one in (tab, other):
        one.set_input_files("#photograph input[type=file]", photograph)
        one.wait_for_selector("#preview img")
    assert tab.inner_text("#facts") == "48 × 48 pixels"
    tab.click("#boost")
    other.click("#boost")  # waits in the queue
    tab.wait_for_selector("#slider img")
    assert tab.inner_text("#status").startswith("96 × 96 pixels in ")
    handle = tab.locator("#slider .inner")
    before = handle.bounding_box()
    tab.mouse.move(before["x"] + before["width"] / 2, before["y"] + before["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(before["x"] - 100, before["y"], steps=4)
    tab.mouse.up()
    assert handle.bounding_box()["x"] < before["x"] - 80
    with tab.expect_download() as download:
        tab.click("#download")
    assert download.value.suggested_filename == "coffee_96x96.png"
    download.value.save_as(tmp_path / "boosted.png")
    settings = read_settings(tmp_path / "boosted.png")
    assert settings["input"]["name"] == "coffee.png"
    assert settings["checkpoint"] == "photo-x2"
    other.wait_for_selector("#slider img")
    with other.expect_download() as download:
        other.click("#download")
    download.value.save_as(tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "boosted.png").read_bytes()


def test_files_that_are_refused(open_tab, photograph):
    tab = open_tab()
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": photograph.read_bytes()[:300]}
    large = io.BytesIO()
    Image.fromarray(skimage.data.coffee()[:80, :80]).save(large, "PNG")
    for file, message in (
        (broken, "broken.png: "),
        ({"name": "large.png", "mimeType": "image/png", "buffer": large.getvalue()}, "the longest side may have 64"),
    ):
        tab.set_input_files("#photograph input[type=file]", file)
        toast = tab.locator(".toast-body", has_text=message)
        toast.wait_for()
        assert "/" not in toast.inner_text()
        tab.click("#photograph button[aria-label='Clear']")
    tab.click("#boost")
    tab.locator(".toast-body", has_text="Drop a photograph first.").wait_for()
