"""The report in a real browser: pictures show, comparing works, prompts stay text, nothing is fetched."""

import fabricate
import pytest
from helpers import chromium

from spectrum_bench.reporting import page as report
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import read_experiment

pytestmark = pytest.mark.slow

PROMPTS = [*fabricate.captions(3), *fabricate.HOSTILE]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """index.html of a reference, its re-run and one method, over hostile prompts."""
    home = tmp_path_factory.mktemp("browser")
    pictures = fabricate.pictures(PROMPTS)
    fabricate.experiment(home / "nocache", PROMPTS, pictures)
    fabricate.experiment(home / "again", PROMPTS, pictures)
    fabricate.experiment(home / "fora", PROMPTS, fabricate.noisy(pictures, 20), "fora", 14)
    reference, *others = (read_experiment(home / name) for name in ("nocache", "again", "fora"))
    list(evaluation.evaluate(others, reference))
    report.write_report(others, reference, home / "out", rows=16)
    return (home / "out" / "index.html").as_uri()


@pytest.fixture
def browser(page, tmp_path):
    """The page, open; afterwards its console must be empty."""
    driver = chromium(tmp_path / "profile")
    try:
        driver.get(page)
        yield driver
        assert driver.get_log("browser") == []
    finally:
        driver.quit()


def test_console_check_would_notice(browser):
    browser.execute_script("console.error('seen')")
    assert [entry["level"] for entry in browser.get_log("browser")] == ["SEVERE"]  # and reading empties the log


def test_pictures_show_and_nothing_is_fetched(browser):
    waiting = "return [...document.querySelectorAll('.sample img')].filter(i => !i.src).length"
    assert 0 < browser.execute_script(waiting) < 3 * len(PROMPTS)  # those out of sight wait for it
    for box in ("samples", "worst"):
        browser.execute_async_script(
            "const [box, done] = arguments; const b = document.querySelector('.' + box);"
            "b.scrollIntoView(); b.scrollTop = b.scrollHeight; setTimeout(done, 300)",
            box,
        )
    widths = browser.execute_async_script(
        "const done = arguments[0], images = [...document.querySelectorAll('.sample img')];"
        "Promise.all(images.map(i => i.decode().then(() => i.naturalWidth))).then(done, done)"
    )
    assert widths == [64] * (3 * len(PROMPTS) + 2 * 3)  # the grid, and of the method the three worst
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("data:") for name in fetched)
    plot = browser.execute_script(
        "const b = document.querySelector('.plot svg').getBoundingClientRect(); return [b.width, b.height]"
    )
    assert plot[0] > 400 and plot[1] > 250


def test_prompts_stay_text(browser):
    shown = browser.execute_script("return [...document.querySelectorAll('.samples .prompt')].map(p => p.textContent)")
    assert shown == PROMPTS
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return document.querySelectorAll('[onerror]').length") == 0
    heights = browser.execute_script(
        "return [...document.querySelectorAll('.samples tbody tr')].map(r => r.offsetHeight)"
    )
    assert max(heights) < 300  # 5,000 characters scroll


def opened(browser):
    """The dialog that a click opens as soon as its pictures are decoded."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    dialog = browser.find_element(By.TAG_NAME, "dialog")
    WebDriverWait(browser, 10).until(lambda _: dialog.get_property("open"))
    return dialog


def shown(browser, role: str, sources: list[str]) -> list[bool]:
    """Whether the dialog's pictures of one role have the pixels of these data URIs."""
    return browser.execute_async_script(
        "const [role, sources, done] = arguments;"
        "const pixels = async src => { const i = new Image(), c = document.createElement('canvas'); i.src = src;"
        "  await i.decode(); c.width = i.naturalWidth; c.height = i.naturalHeight;"
        "  c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL(); };"
        "const same = async (img, uri) => await pixels(img.src) === await pixels(uri);"
        "const images = [...document.querySelectorAll('dialog .' + role)];"
        "Promise.all(images.map((img, i) => same(img, sources[i]))).then(done, done)",
        role,
        sources,
    )


def test_clips_are_compared_in_step(browser):
    """Two clips of the same grey levels, already playing a while apart, differ nowhere once they are compared."""
    import base64
    import io
    import time

    import numpy as np
    from PIL import Image
    from selenium.webdriver.common.by import By

    def clip(corner):
        frames = [np.full((64, 64, 3), 30 * k, np.uint8) for k in range(8)]
        frames[0][0, 0] = corner  # so that the browser cannot take them for one
        out = io.BytesIO()
        first, *rest = map(Image.fromarray, frames)
        first.save(out, "webp", save_all=True, append_images=rest, duration=100, loop=0, lossless=True)
        return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()

    play = "const [i, uri] = arguments, img = document.querySelectorAll('.sample img')[i];"
    play += "img.dataset.src = uri; img.src = uri;"
    browser.execute_script(play, 0, clip(0))
    time.sleep(0.35)
    browser.execute_script(play, 2, clip(255))
    time.sleep(0.2)
    browser.find_elements(By.CSS_SELECTOR, ".sample")[2].click()
    stage = opened(browser).find_element(By.CLASS_NAME, "difference")
    for _ in range(5):
        seen = np.asarray(Image.open(io.BytesIO(stage.screenshot_as_png)).convert("L"))
        inside = seen[20:-20, 20:-20]
        assert inside.size and inside.max() == 0
        time.sleep(0.13)


def test_click_compares_with_the_reference(browser):
    from selenium.webdriver.common.by import By

    sample = browser.find_elements(By.CSS_SELECTOR, ".sample")[2]  # the method's first
    reference = browser.find_elements(By.CSS_SELECTOR, ".sample img")[0].get_attribute("data-src")
    own = sample.find_element(By.TAG_NAME, "img").get_attribute("data-src")
    sample.click()
    dialog = opened(browser)
    assert shown(browser, "sample-image", [reference, reference]) == [False, False]
    for role, source in (("reference-image", reference), ("sample-image", own)):
        assert shown(browser, role, [source, source]) == [True, True] and source.startswith("data:image/png")
    assert dialog.find_element(By.CLASS_NAME, "name").text == "fora 14/50"
    assert " dB" in dialog.find_element(By.CLASS_NAME, "words").text
    assert dialog.find_element(By.CLASS_NAME, "prompt").text == PROMPTS[0]
    browser.execute_script(
        "const s = document.querySelector('dialog input'); s.value = 20; s.dispatchEvent(new Event('input'))"
    )
    clip = "return getComputedStyle(document.querySelector('.slide .sample-image')).clipPath"
    assert browser.execute_script(clip).endswith("20%)")
    dialog.find_element(By.CLASS_NAME, "close").click()
    assert not dialog.get_property("open")


def test_pointing_swaps_in_the_reference(browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    first, _, third = browser.find_elements(By.CSS_SELECTOR, ".sample")[:3]
    image = third.find_element(By.TAG_NAME, "img")
    own, reference = image.get_attribute("src"), first.find_element(By.TAG_NAME, "img").get_attribute("src")
    assert own != reference
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", third)
    ActionChains(browser).move_to_element(third).perform()
    assert image.get_attribute("src") == reference
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h2")).perform()
    assert image.get_attribute("src") == own


def test_a_click_on_a_row_shows_where_it_comes_from(browser):
    from selenium.webdriver.common.by import By

    row = browser.find_elements(By.CSS_SELECTOR, ".figures tbody tr")[2]
    row.find_elements(By.TAG_NAME, "td")[5].click()
    (origin,) = browser.find_elements(By.CSS_SELECTOR, ".provenance[open]")
    words = origin.text
    assert words.startswith("fora 14/50") and "test machine" in words and "torch 2.14.1" in words
    assert 14 * "#" + 36 * "." in words and "exp_name: fora" in words and "0123456789abcdef" in words


def test_the_keyboard_shows_where_a_row_comes_from(browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.find_elements(By.CSS_SELECTOR, ".figures tbody a")[2].send_keys(Keys.ENTER)
    (origin,) = browser.find_elements(By.CSS_SELECTOR, ".provenance[open]")
    assert origin.text.startswith("fora 14/50")
    assert browser.switch_to.active_element == origin.find_element(By.TAG_NAME, "summary")
    assert browser.current_url.endswith("#row-2")


def test_the_worst_stand_beside_their_references(browser):
    from selenium.webdriver.common.by import By

    original, own = browser.find_elements(By.CSS_SELECTOR, ".worst .set")[0].find_elements(By.CLASS_NAME, "sample")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", own)
    own.click()
    dialog = opened(browser)
    assert dialog.find_element(By.CLASS_NAME, "name").text == "fora 14/50"
    for role, sample in (("reference-image", original), ("sample-image", own)):
        key = sample.find_element(By.TAG_NAME, "img").get_attribute("data-from")
        source = browser.find_element(By.ID, key).get_attribute("data-src")
        assert shown(browser, role, [source, source]) == [True, True]


def test_columns_sort(browser):
    from selenium.webdriver.common.by import By

    def column(i):
        return [row.find_elements(By.TAG_NAME, "td")[i].text.split("\n")[0] for row in rows()]

    def rows():
        return browser.find_elements(By.CSS_SELECTOR, ".figures tbody tr")

    head = browser.find_elements(By.CSS_SELECTOR, ".figures th")[4]
    before = column(4)
    head.click()
    rising = column(4)
    assert rising == sorted(before, key=float) and head.get_attribute("aria-sort") == "ascending"
    head.click()
    assert column(4) == sorted(before, key=float, reverse=True)


@pytest.mark.parametrize("width", [360, 1400])
def test_only_tables_scroll_sideways(browser, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    inner = "const t = document.querySelector('.scroll'); return t.scrollWidth - t.clientWidth"
    assert (browser.execute_script(inner) > 0) == (width < 500)


def test_dark_mode(browser):
    colours = []
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        colours.append(browser.execute_script(style))
    assert colours[0][0] == "rgb(255, 255, 255)" and colours[1][0] == "rgb(20, 23, 26)"
    assert colours[0][1] != colours[1][1]
