"""The report in a real browser: it renders, sorts and filters, asks nobody, and nothing of an image comes to life."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("pyarrow", reason="pip install '.[bulk]': the report is of its results")
pytest.importorskip("jinja2", reason="pip install '.[bulk]': the report's template")
pytest.importorskip("selenium", reason="pip install selenium: it drives the browser of these tests")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from apcaudit.bulk.records import Records
from apcaudit.reports import dataset, page
from tests.browser import chromium, is_there
from tests.conftest import ROOT
from tests.report_results import EVIL, failed, image, suspect, together, varied, write

FINDINGS = "#all-findings"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    if not is_there():
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of eight images with findings, one of them critical and of a hostile process, one clean, one failed."""
    folder = tmp_path_factory.mktemp("report")
    codes = (("routine-unbacked", "critical"), ("undelivered", "medium"))
    calm = [suspect(number, process=f"process{number}.exe") for number in range(7)]
    results = write(folder / "results", *calm, suspect(7, EVIL, codes), Records(image(8)), failed(9, "no kernel"))
    return written(folder, page.render(dataset.read(results), EVIL))


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Any]:
    """The report, just opened; whatever a test does with it, the console stays empty and nothing else is asked for."""
    yield from visit(browser, address)


def written(folder: Path, html: str) -> str:
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path.as_uri()


def visit(browser: Any, address: str) -> Iterator[Any]:
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []
    assert requests(browser) == {address}


def requests(browser: Any) -> set[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"}


# One call for all rows: each call goes through two processes.
SHOWN_ROWS = "[...document.querySelectorAll(`${arguments[0]} tbody tr`)].filter(row => row.getClientRects().length)"


def rows(browser: Any, table: str) -> list[WebElement]:
    """Return the rows of a table that are shown."""
    found: list[WebElement] = browser.execute_script(f"return {SHOWN_ROWS}", table)
    return found


def column(browser: Any, table: str, index: int) -> list[str]:
    """Return what the cells of a column show."""
    cells = f"{SHOWN_ROWS}.map(row => row.children[arguments[1]].innerText.trim())"
    found: list[str] = browser.execute_script(f"return {cells}", table, index)
    return found


def header(browser: Any, table: str, text: str) -> WebElement:
    found: WebElement = browser.find_element(
        By.XPATH, f"//table[@id='{table[1:]}']/thead//th[.//button[normalize-space()='{text}']]"
    )
    return found


def words(browser: Any, table: str) -> WebElement:
    found: WebElement = browser.find_element(By.CSS_SELECTOR, f".tools[data-for='{table[1:]}'] .words")
    return found


def said(browser: Any, table: str) -> str:
    return str(browser.find_element(By.CSS_SELECTOR, f".tools[data-for='{table[1:]}'] .count").text)


def test_it_renders(opened: Any) -> None:
    """Headings, numbers, drawings and bars are on the page, and each drawing has a size."""
    tiles = [tile.text for tile in opened.find_elements(By.CSS_SELECTOR, ".tiles li")]
    assert tiles == ["10 images", "8 with findings", "8 suspect threads", "9 findings", "1 failed: 1 at open"]
    drawings = opened.find_elements(By.CSS_SELECTOR, "svg.chain")
    assert len(drawings) == 8
    assert all(drawing.is_displayed() and drawing.size["width"] > 1000 for drawing in drawings)
    assert len(rows(opened, "#cells")) == 8
    assert [row.text.split()[0] for row in rows(opened, "#all-failures")] == ["host-0009.dmp"]


def test_a_hostile_name_stays_text(opened: Any) -> None:
    """A process named as an image with a handler is shown in letters: there is no such element, and nothing ran."""
    assert opened.find_elements(By.TAG_NAME, "img") == []
    assert opened.title == f"apcaudit: {EVIL}"
    assert column(opened, FINDINGS, 3)[0] == EVIL
    assert EVIL in opened.find_element(By.CSS_SELECTOR, "#chains h3").text


def test_sorting_by_mouse(opened: Any) -> None:
    """A click on a column's name sorts by it, a second one the other way round, and the header says so."""
    button = header(opened, FINDINGS, "Image")
    button.find_element(By.TAG_NAME, "button").click()
    names = column(opened, FINDINGS, 2)
    assert names == sorted(names)
    assert button.get_attribute("aria-sort") == "ascending"
    button.find_element(By.TAG_NAME, "button").click()
    assert column(opened, FINDINGS, 2) == sorted(names, reverse=True)
    assert button.get_attribute("aria-sort") == "descending"


def test_sorting_by_keyboard(opened: Any) -> None:
    """The names of columns are reached with the tabulator key and work with the enter key; severity sorts by rank."""
    words(opened, FINDINGS).click()
    keys = webdriver.ActionChains(opened)
    # The filter, the severities, the region that scrolls, the first column.
    keys.send_keys(Keys.TAB, Keys.TAB, Keys.TAB, Keys.ENTER, Keys.ENTER).perform()
    assert opened.switch_to.active_element.text.startswith("Severity")
    assert header(opened, FINDINGS, "Severity").get_attribute("aria-sort") == "descending"
    assert column(opened, FINDINGS, 0)[-1].endswith("critical")


def test_numbers_sort_as_numbers(opened: Any) -> None:
    """Names with numbers in them sort by the number, and empty numbers come first."""
    header(opened, FINDINGS, "Process").find_element(By.TAG_NAME, "button").click()
    found = [name for name in column(opened, FINDINGS, 3) if name != EVIL]
    assert found == [f"process{number}.exe" for number in range(7)]


def test_filtering_by_words(opened: Any) -> None:
    """Typed words leave the rows that have all of them, the count is said, and without words all are back."""
    words(opened, FINDINGS).send_keys("PROCESS3 undeliv")
    assert column(opened, FINDINGS, 3) == ["process3.exe"]
    assert said(opened, FINDINGS) == "1 of 1 shown (9 in all)"
    words(opened, FINDINGS).send_keys(Keys.CONTROL, "a")
    words(opened, FINDINGS).send_keys(Keys.DELETE)
    assert len(rows(opened, FINDINGS)) == 9


def test_filtering_by_severity(opened: Any) -> None:
    """A severity leaves the rows that are as severe or worse."""
    choice = Select(opened.find_element(By.CSS_SELECTOR, ".tools[data-for='all-findings'] .level"))
    choice.select_by_visible_text("high or worse")
    assert column(opened, FINDINGS, 1) == ["routine-unbacked"]
    choice.select_by_visible_text("medium or worse")
    assert len(rows(opened, FINDINGS)) == 9


def test_from_the_matrix_to_the_findings(opened: Any) -> None:
    """A finding's name above the matrix leaves that finding in the table of all."""
    opened.find_element(By.CSS_SELECTOR, "#cells a[data-filter='routine-unbacked']").click()
    assert column(opened, FINDINGS, 1) == ["routine-unbacked"]


def test_landmarks_are_told_apart(opened: Any) -> None:
    """Each part that a screen reader lists has a name, and no two have the same."""
    landmarks = opened.find_elements(By.CSS_SELECTOR, "nav, section, [role=region]")
    names = [landmark.accessible_name for landmark in landmarks if landmark.is_displayed()]
    assert len(names) > 10
    assert all(names)
    assert sorted(names) == sorted(set(names))


def test_light_and_dark(opened: Any) -> None:
    """The page follows the scheme that the reader prefers."""
    grounds = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
        grounds.append(sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))))
    assert grounds[0] > 600
    assert grounds[1] < 150


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of 300 images."""
    return written(tmp_path_factory.mktemp("crowded"), page.render(together(varied(300)), "crowded"))


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of forty images."""
    return written(tmp_path_factory.mktemp("forty"), page.render(together(varied(40)), "forty"))


def test_a_wide_matrix_stays_in_its_frame(browser: Any, crowded: str) -> None:
    """A matrix of all findings and 300 images is smaller than the window, scrolls both ways, and a hint says so."""
    for opened in visit(browser, crowded):
        frame = opened.find_element(By.CSS_SELECTOR, ".scroll:has(#cells)")
        sizes = "const e = arguments[0]; return [e.scrollWidth > e.clientWidth, e.scrollHeight > e.clientHeight]"
        assert opened.execute_script(sizes, frame) == [True, True]
        assert opened.execute_script("return arguments[0].clientHeight < window.innerHeight", frame)
        assert opened.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert "scrolls within its frame" in opened.find_element(By.CSS_SELECTOR, ".hint").text


@pytest.mark.parametrize("script", [True, False])
def test_it_prints_on_few_pages(browser: Any, crowded: str, tmp_path: Path, script: bool) -> None:
    """300 images are at most 40 pages, with all of the guide on 37 findings, whether the script runs or not."""
    address = crowded
    if not script:
        html = Path(unquote(urlsplit(crowded).path)).read_text(encoding="utf-8")
        address = written(tmp_path, html.partition("<script>")[0])
    # Laid out for paper from the beginning: it would take the browser longer to do it for the screen before and after.
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.get(address)
        options = {"preferCSSPageSize": True, "printBackground": True, "generateTaggedPDF": False}
        pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", options)["data"])
    finally:
        # Away from the page first, which would be laid out for the screen.
        browser.get("about:blank")
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 10 < pages <= 40


def find_axe() -> Path | None:
    """Find axe-core, which npm installs: in the checkout, else among npm's global packages."""
    places = [Path(folder, "node_modules") for folder in (ROOT, Path("/usr/local/lib"), Path("/usr/lib"))]
    found = (place / "axe-core" / "axe.min.js" for place in places)
    return next((path for path in found if path.is_file()), None)


@pytest.mark.parametrize(("which", "scheme"), [("address", "light"), ("address", "dark"), ("forty", "light")])
def test_axe_has_nothing_to_say(browser: Any, which: str, scheme: str, request: pytest.FixtureRequest) -> None:
    """axe-core, which tests pages for accessibility, finds no violation in either scheme."""
    axe = find_axe()
    if axe is None:
        pytest.skip("axe-core is missing: npm install --no-save --no-package-lock axe-core@4, in the checkout")
    for opened in visit(browser, request.getfixturevalue(which)):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        opened.set_script_timeout(120)
        opened.execute_script(axe.read_text(encoding="utf-8"))
        run = "axe.run({resultTypes: ['violations']}).then(arguments[0], error => arguments[0]({error: String(error)}))"
        found = opened.execute_async_script(run)
        assert found.get("error") is None
        nodes = [(each["id"], [node["target"] for node in each["nodes"]][:3]) for each in found["violations"]]
        assert nodes == []


def test_the_policy_is_in_force(browser: Any, address: str) -> None:
    """A script, a style and a picture that get into the page are refused by the browser."""
    browser.get(address)
    browser.get_log("performance")
    width = browser.execute_script(
        """
        document.title = "calm";
        const script = document.createElement("script");
        script.textContent = "document.title = 'run'";
        const picture = document.createElement("img");
        picture.src = "http://127.0.0.1:9/picture";
        const style = document.createElement("style");
        style.textContent = "h1 { width: 7px }";
        document.body.append(script, picture, style);
        return document.querySelector("h1").clientWidth;
        """
    )
    assert browser.title == "calm"
    assert width > 7
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert len(refused) == 3
    assert all("Content Security Policy" in each for each in refused)


def test_a_thousand_images(browser: Any, tmp_path: Path) -> None:
    """A thousand images with findings make a page that opens, of capped lists and a matrix of a few rows."""
    kinds = (("undelivered", "medium"),), (("state-mismatch", "low"),), (("pending-lost", "medium"),)
    found = together([suspect(number, codes=kinds[number % 3]) for number in range(1000)])
    for opened in visit(browser, written(tmp_path, page.render(found, "many"))):
        assert [len(rows(opened, table)) for table in (FINDINGS, "#all-images", "#cells")] == [100, 50, 3]
        assert said(opened, FINDINGS) == "100 of 1000 shown"
        assert len(opened.find_elements(By.CSS_SELECTOR, "svg.chain")) == 3
        opened.find_element(By.CSS_SELECTOR, ".tools[data-for='all-images'] .all").click()
        assert said(opened, "#all-images") == "1000 of 1000 shown"
        words(opened, FINDINGS).send_keys("host-0999")
        assert column(opened, FINDINGS, 2) == ["host-0999.dmp"]
