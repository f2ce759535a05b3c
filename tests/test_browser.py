"""The page in a real browser: no error, no request but for the file itself, nothing that sticks out or overlaps."""

import shutil

import pytest

from hfbatch.html import report_html
from tests.test_html import ABOUT, ATTACKS, report_with

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")

LONG = "a label that goes on and on until nobody would want to read it any more"
PAGES = {
    "full": report_with(
        labels={"POSITIVE": 24_012, LONG: 14_900, "好" * 50: 9_000, **{f"label {n}": 100 - n for n in range(40)}}
    ),
    "hostile": report_with(
        labels=dict.fromkeys(ATTACKS, 7),
        job=ATTACKS[1],
        examples={"null_input": "".join(ATTACKS), "too_long": "x" * 300},
    ),
}
# Words of a chart that reach out of it, or into each other.
CLASHES = """() => [...document.querySelectorAll("svg.hf-chart")].flatMap(svg => {
  const frame = svg.getBoundingClientRect()
  const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()])
  const outside = boxes.filter(([, box]) => box.width &&
    (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1))
  const overlapping = boxes.filter(([, one], i) => boxes.some(([, other], j) => j > i &&
    one.left < other.right - 1 && other.left < one.right - 1 &&
    one.top < other.bottom - 4 && other.top < one.bottom - 4))
  return [...outside, ...overlapping].map(([word]) => word)
})"""
SHADES = """() => {
  const of = (node, name) => getComputedStyle(node)[name].match(/[\\d.]+/g).slice(0, 3).map(Number)
  return [of(document.body, "backgroundColor"), of(document.body, "color")]
}"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function: (report, width, scheme) -> (page, what it said and asked for)."""
    contexts = []

    def open_page(report, width, scheme="light"):
        file = tmp_path / "report.html"
        file.write_text(report_html(report, ABOUT))
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page, told = contexts[-1].new_page(), []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: told.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page, told

    yield open_page
    for context in contexts:
        context.close()


def brightness(colour):
    """0 to 1, as WCAG 2 weighs it."""
    red, green, blue = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("report", PAGES.values(), ids=PAGES)
def test_the_page_is_drawn_without_an_error_or_a_request_and_nothing_sticks_out(opened, report, width, scheme):
    page, told = opened(report, width, scheme)
    assert page.locator("svg.hf-chart").count() == 7
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CLASHES) == []
    back, ink = map(brightness, page.evaluate(SHADES))
    assert (back > ink) == (scheme == "light")
    assert (max(back, ink) + 0.05) / (min(back, ink) + 0.05) > 7
    assert told == []


def test_what_a_page_prints_is_dark_on_white(opened):
    page, told = opened(PAGES["full"], 1200, "dark")
    page.emulate_media(media="print")
    assert page.evaluate(SHADES) == [[255, 255, 255], [0, 0, 0]]
    assert page.pdf().startswith(b"%PDF-")
    assert told == []


def test_a_script_that_got_into_a_page_would_not_run_nor_fetch(opened, tmp_path):
    page, told = opened(PAGES["full"], 400)
    page.set_content(
        page.content().replace(
            "</main>", "<script>document.title = 'owned'</script><img src=https://evil.example/x></main>"
        )
    )
    assert page.title() != "owned"
    assert any("Content Security Policy" in each for each in told)
