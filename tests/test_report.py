"""`apcaudit report`: what the page holds, in what order, and that nothing of an image is more than text in it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="pip install '.[bulk]': the report is of its results")
pytest.importorskip("duckdb", reason="pip install '.[bulk]': the report queries with it")
pytest.importorskip("jinja2", reason="pip install '.[bulk]': the report's template")

from apcaudit import explain
from apcaudit.bulk.records import TABLES, Records
from apcaudit.cli import main
from apcaudit.reports import chain, dataset, diagram, guide, made, matrix, page, prevalence, summary
from tests.bulk_images import shared_cache
from tests.conftest import ROOT
from tests.report_results import EVIL, STOPPED, failed, image, suspect, together, write

TABLES_OF_ROWS = tuple(TABLES)[1:]

#: The elements that the guide's pages are made of.
MARKUP = {
    *("p", "ul", "ol", "li", "code", "em", "strong", "a", "pre", "span"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}

CRITICAL = (("detach-bugcheck", "critical"), ("undelivered", "medium"))


class Tags(HTMLParser):
    """Collects the tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Take text."""
        self.text.append(data)


def report(folder: Path, *records: Records) -> str:
    results = write(folder / "results", *records)
    return page.render(dataset.read(results), "evidence")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of an image with findings and one that failed."""
    return report(tmp_path_factory.mktemp("usual"), suspect(1, codes=CRITICAL), failed(2, "why"))


def test_rows_together() -> None:
    """What is put together without a folder is what is read of a folder, but for how many images have what."""
    records = [suspect(1, codes=CRITICAL), suspect(2)]
    with tempfile.TemporaryDirectory() as folder:
        found = dataset.read(write(Path(folder), *records))
    assert dataclasses.replace(found, stacked=()) == together(records)


def test_the_command_writes_the_file(tmp_path: Path) -> None:
    """`apcaudit report RESULTS -o FILE` writes the file and exits with 0, whatever was found."""
    results = write(tmp_path / "results", suspect(1), failed(2, "no Windows kernel"))
    assert main(["report", str(results), "-o", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert {path.name for path in tmp_path.iterdir()} == {"results", "report.html"}


@pytest.mark.parametrize("there", [True, False])
def test_no_results_is_an_error(tmp_path: Path, there: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without results, or none, is an error in one line, and no file is written."""
    folder = tmp_path / "results"
    if there:
        folder.mkdir()
    assert main(["report", str(folder), "-o", str(tmp_path / "report.html")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_an_image_that_cannot_be_scanned(tmp_path: Path) -> None:
    """One image works as a folder of results does: what is no image is a failure in the report, and exit code 2."""
    (tmp_path / "noise.raw").write_bytes(b"no memory " * 1000)
    html = tmp_path / "report.html"
    with shared_cache():
        assert main(["report", str(tmp_path / "noise.raw"), "-o", str(html), "--offline"]) == 2
    assert "noise.raw" in html.read_text(encoding="utf-8")
    assert "No image could be scanned" in html.read_text(encoding="utf-8")


def test_the_same_results_make_the_same_file(tmp_path: Path) -> None:
    """Two reports of the same results are equal byte for byte, in whatever order the images were scanned."""
    records = [suspect(1, codes=CRITICAL), suspect(2), suspect(3), failed(4, "why")]
    assert report(tmp_path / "a", *records) == report(tmp_path / "b", *reversed(records))


@pytest.mark.parametrize("record", [suspect(1), failed(1, "why", crash=STOPPED)], ids=["scanned", "failed"])
def test_how_a_machine_stopped(tmp_path: Path, record: Records) -> None:
    """A report of one image says at the top how its machine stopped, and of several in the image's row."""
    text = "".join(Tags(report(tmp_path / "one", record)).text)
    assert text.index(f"The machine stopped: {STOPPED}") < text.index("Suspect threads", text.index("Summary"))
    several = "".join(Tags(report(tmp_path / "two", record, image_of(2))).text)
    assert "The machine stopped:" not in several
    # Folded: the bugcheck's name, and all of the line behind it.
    assert f"{STOPPED.partition(', ')[0]}{STOPPED}" in several


def image_of(number: int) -> Records:
    return Records(image(number))


@pytest.mark.parametrize("evil", [EVIL, "</style><script>alert(1)</script>", "\"' onload=alert(1) x='", "{{ 7 * 7 }}"])
def test_nothing_of_an_image_is_markup(tmp_path: Path, usual: str, evil: str) -> None:
    """In every text column of every table, what looks like markup is text: the page has the same tags as without it."""
    calm = suspect(1, codes=CRITICAL)

    def spoil(row: object) -> object:
        kept = {"image", "status", "severity", "code", "findings"}
        names = [each.name for each in dataclasses.fields(row)]  # type: ignore[arg-type]
        texts = {name: evil for name in names if isinstance(getattr(row, name), str) and name not in kept}
        return dataclasses.replace(row, **texts)  # type: ignore[type-var]

    spoiled = Records(
        spoil(calm.image),  # type: ignore[arg-type]
        *(tuple(map(spoil, calm.rows(table))) for table in ("threads", "apcs", "findings", "drivers")),  # type: ignore[arg-type]
    )
    html = report(tmp_path / "spoiled", spoiled, failed(2, evil))
    found, calm_page = Tags(html), Tags(usual)
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in calm_page.tags}
    assert {name for _, attributes in found.tags for name in attributes} <= {
        name for _, attributes in calm_page.tags for name in attributes
    }
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert any(evil in text for text in found.text)


def test_the_policy_allows_nothing_but_our_style_and_script(tmp_path: Path) -> None:
    """The page's policy begins at nothing, and names style and script by the SHA-256 of what the page has there."""
    html = report(tmp_path, suspect(1))
    tags = Tags(html).tags
    contents = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(contents) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in (contents[0] or "").split(";"))
    for tag in ("style", "script"):
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"


def test_the_page_asks_nobody(usual: str) -> None:
    """No attribute leads out of the page, and style and script have no address and no request in them."""
    for _, attributes in Tags(usual).tags:
        assert not {"src", "srcset", "action", "formaction", "data", "poster", "style", "onclick"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|innerHTML|eval\(", usual)


def test_links_and_labels_lead_somewhere(tmp_path: Path) -> None:
    """Every link within the page, label and tool names an element that is there once."""
    tags = Tags(report(tmp_path, suspect(1, codes=CRITICAL), suspect(2), failed(3, "why"))).tags
    identities = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for _, attributes in tags:
        for name in ("aria-labelledby", "data-for"):
            assert attributes.get(name, identities[0]) in identities
        assert (attributes.get("href") or f"#{identities[0]}")[1:] in identities


def test_the_top(tmp_path: Path) -> None:
    """Images, failures, and findings and images of each severity are counted."""
    made = write(
        tmp_path, suspect(1, codes=CRITICAL), suspect(2), Records(image(3)), failed(4, "why"), failed(5, "why")
    )
    found = summary.summarize(dataset.read(made))
    assert (found.images, found.scanned, found.failed, found.with_findings, found.findings) == (5, 3, 2, 2, 3)
    assert found.stages == (("open", 2),)
    levels = {each.severity: (each.findings, each.images) for each in found.levels}
    assert levels == {"critical": (1, 1), "high": (0, 0), "medium": (2, 2), "low": (0, 0), "info": (0, 0)}


def test_no_findings_is_no_clean_bill(tmp_path: Path) -> None:
    """A report without findings says what that does not mean."""
    assert "silence about a damaged image is not a clean bill" in report(tmp_path, Records(image(1)))


@pytest.mark.parametrize(("others", "compared"), [(0, False), (1, True)])
def test_one_image_is_not_compared(tmp_path: Path, others: int, compared: bool) -> None:
    """Prevalence is shown where more than one image was scanned: a failed one does not count."""
    html = report(tmp_path, suspect(0), failed(9, "why"), *(suspect(1 + each) for each in range(others)))
    assert ('id="prevalence"' in html) is compared


def test_prevalence(tmp_path: Path) -> None:
    """A bar is as long as the part of the scanned images that have the thing, and the rarest is first."""
    records = [suspect(1, codes=CRITICAL), suspect(2), Records(image(3)), Records(image(4)), failed(5, "why")]
    charts = {each.key: each for each in prevalence.charts(dataset.read(write(tmp_path, *records)))}
    bars = {key: [(bar.name, bar.images, bar.share, bar.named) for bar in chart.bars] for key, chart in charts.items()}
    both = ("host-0001.dmp", "host-0002.dmp")
    assert bars == {
        "finding": [("detach-bugcheck", 1, 250, both[:1]), ("undelivered", 2, 500, both)],
        "kernel-routine": [("nt!IopCompleteRequest", 2, 500, both)],
        "start-routine": [("Bfilter!Worker+0x30", 2, 500, both)],
        "driver": [("ntoskrnl.exe", 2, 500, both)],
    }


def test_few_images_have_a_row_each(tmp_path: Path) -> None:
    """In the matrix of a few images each with findings has a row, the worst first; one without has none."""
    made = write(tmp_path, suspect(1), suspect(2), suspect(3, codes=CRITICAL), Records(image(4)))
    found = matrix.lay_out(dataset.read(made))
    assert [row.images for row in found.rows] == [("host-0003.dmp",), ("host-0001.dmp",), ("host-0002.dmp",)]
    assert [(each.code, each.images) for each in found.columns] == [("detach-bugcheck", 1), ("undelivered", 3)]
    assert (found.clean, found.shared) == (1, False)


def test_many_images_share_rows() -> None:
    """In the matrix of many images those with the same findings share a row, and the rarest of a severity is first."""
    pair = (("undelivered", "medium"), ("state-mismatch", "low"))
    found = matrix.lay_out(together([*map(suspect, range(40)), suspect(50, codes=CRITICAL), suspect(51, codes=pair)]))
    assert [(len(row.images), row.severity) for row in found.rows] == [(1, "critical"), (1, "medium"), (40, "medium")]
    assert found.shared


def test_a_chain(tmp_path: Path) -> None:
    """A suspect thread's chain goes from its image over the origin and the KAPC to code, and to where it began."""
    made = write(tmp_path, suspect(7, codes=CRITICAL))
    found = chain.make_chains(dataset.read(made))
    boxes = diagram.draw(found[0]).boxes
    assert [(box.heading, box.whole.split("\n")[0]) for box in boxes] == [
        ("Image", "host-0007.dmp"),
        ("Thread", "System (4)"),
        ("Origin", "completion of IRP 0x8a3f6208, IRP_MJ_READ to \\Driver\\avdisk?"),
        ("KAPC 0", "kernel queue"),
        ("KernelRoutine", "nt!IopCompleteRequest"),
        ("Driver", "ntoskrnl.exe"),
        ("start routine", "Bfilter!Worker+0x30"),
        ("Driver", "Bfilter.sys"),
    ]
    # Each in the column behind the one before it, up to the driver.
    assert [box.x for box in boxes[:6]] == sorted({box.x for box in boxes})


def test_the_same_story_is_told_once(tmp_path: Path) -> None:
    """Threads of several images that differ in addresses only share a chain; another process is another story."""
    found = chain.make_chains(dataset.read(write(tmp_path, suspect(1), suspect(2), suspect(3, process="lsass.exe"))))
    assert [each.images for each in found] == [("host-0003.dmp",), ("host-0001.dmp", "host-0002.dmp")]


@pytest.mark.parametrize(
    ("module", "routine", "said"),
    [
        ("ntoskrnl.exe", "nt!IopCompleteRequest", None),
        ("Evil.sys", "Evil!Apc (hidden)", "hidden: in no list"),
        ("Evil.sys", "Evil+0x1230 (.text) (unlisted)", "unlisted"),
        # The audit names no routine where an unloaded driver lay.
        ("Evil.sys", "0xfffff80012345678", "unloaded"),
        (None, "0xfffff80012345678", "in no module"),
        # An image that hides behind the name of a loaded one.
        ("ntoskrnl.exe", "nt!IopCompleteRequest (hidden)", "hidden: in no list"),
    ],
)
def test_code_of_no_loaded_module_stands_out(module: str | None, routine: str, said: str | None) -> None:
    """A driver's box is marked when the list lacks it, when it is unloaded, or when the routine is in none."""
    records = suspect(1)
    apc = dataclasses.replace(records.apcs[0], kernel_module=module, kernel_routine=routine)
    records = Records(records.image, records.threads, (apc,), records.findings, records.drivers)
    boxes = diagram.draw(chain.make_chains(together([records]))[0]).boxes
    marked, unmarked = [(box.suspect, box.whole.split("\n")) for box in boxes if box.heading == "Driver"]
    assert marked == (said is not None, [*filter(None, (module, said))])
    assert unmarked == (False, ["Bfilter.sys"])


def test_a_routine_of_0(tmp_path: Path) -> None:
    """A KernelRoutine of 0, which the kernel would call, is drawn and marked; the other routines may be 0."""
    records = suspect(1)
    nothing = {"kernel_routine": "0x0", "kernel_module": None, "kernel_rva": None}
    apc = dataclasses.replace(records.apcs[0], **nothing, normal_routine="0x0", rundown_routine="0x0")
    made = Records(records.image, records.threads, (apc,), records.findings, records.drivers)
    boxes = diagram.draw(chain.make_chains(dataset.read(write(tmp_path, made)))[0]).boxes
    assert [(box.heading, box.whole) for box in boxes if box.suspect] == [
        ("KernelRoutine", "0x0"),
        ("Driver", "in no module"),
    ]
    assert {"NormalRoutine", "RundownRoutine"}.isdisjoint(box.heading for box in boxes)


def test_the_first_stories_are_open(tmp_path: Path) -> None:
    """What was found is open of the first three threads, and closed of the others."""
    html = report(tmp_path, *(suspect(number, process=f"process{number}.exe") for number in range(5)))
    found = [attributes for tag, attributes in Tags(html.partition('id="chains"')[2]).tags if tag == "details"][:5]
    assert ["open" in attributes for attributes in found] == [True, True, True, False, False]


def test_each_finding_is_explained(tmp_path: Path) -> None:
    """Of each finding that is shown the page has what the guide says it means and what to check, and links to it."""
    html = report(tmp_path, suspect(1, codes=CRITICAL))
    assert re.findall(r'<h3 id="about-([a-z-]+)"', html) == ["detach-bugcheck", "undelivered"]
    assert html.count('href="#about-detach-bugcheck"') >= 3
    for code in ("detach-bugcheck", "undelivered"):
        page_of = (ROOT / "docs" / "findings" / f"{code}.md").read_text(encoding="utf-8")
        means = page_of.partition("## What it means\n")[2].partition("\n##")[0]
        check = page_of.partition("## Check next\n")[2].partition("\n##")[0]
        shown = " ".join("".join(Tags(html).text).split())
        for section in (means, check):
            first = " ".join(re.sub(r"[`*]|^1\. ", "", section.strip()).split()[:8])
            assert first in shown


@pytest.mark.parametrize("code", ["../../../README", "a-later-finding", ""])
def test_a_finding_without_a_page(tmp_path: Path, code: str) -> None:
    """A finding that the guide does not know, of a later release or of results that somebody wrote, has none."""
    html = report(tmp_path, suspect(1, codes=((code, "high"),)))
    assert "<h3 id" not in html.partition('id="findings"')[2]
    assert 'href="#about-' not in html


def test_every_page_can_be_shown() -> None:
    """Each page of the guide has both sections, which become markup of few kinds, without links that lead nowhere."""
    every = [(code, "high") for code in sorted(explain.codes())]
    assert len(every) == len(list((ROOT / "docs" / "findings").glob("*.md")))
    for each in guide.guidance(every):
        tags = Tags(each.means + each.check).tags
        assert {tag for tag, _ in tags} <= MARKUP
        targets = [attributes["href"] for tag, attributes in tags if tag == "a"]
        assert {str(target) for target in targets} <= {f"#{guide.anchor(code)}" for code, _ in every}
        assert all(attributes.keys() <= {"href"} for _, attributes in tags)
        assert each.means
        assert each.check


def test_what_it_was_made_with(tmp_path: Path) -> None:
    """The page ends with programs, options, rules with hashes, what was not done, and the symbol files in use."""
    ways = {
        "versions": "apcaudit 0.1.0+abc, volatility3 2.28.2",
        "options": "--scan --yara-file /rules",
        "rules": f"{'ab' * 32}  one.yar\n{'cd' * 32}  two.yar",
        "not_done": "drivers are not scanned\nsymbol files are not fetched",
        "symbol_file": "/symbols/ntkrnlmp.pdb/A9C0DE-1.json.xz",
    }
    records = [suspect(number) for number in range(3)]
    alike = [Records(dataclasses.replace(each.image, **ways), *map(each.rows, TABLES_OF_ROWS)) for each in records]
    other = failed(9, "why")
    html = report(tmp_path, *alike, other)
    text = " ".join("".join(Tags(html.partition('id="made"')[2]).text).split())
    for value in ("\n".join(ways.values()).splitlines())[:-1]:
        assert " ".join(value.split()) in text
    assert "3 images" in text
    assert "1 image" in text
    assert "/symbols/ntkrnlmp.pdb/A9C0DE-1.json.xz 3 images" in text
    found = made.ways(dataset.read(tmp_path / "results"))
    assert [(each.images, len(each.rules), len(each.not_done)) for each in found] == [(3, 2, 2), (1, 0, 0)]


def test_boxes_do_not_overlap() -> None:
    """However many APCs a thread has and however long their texts are, no two boxes of a drawing overlap."""
    records = suspect(1, process="p" * 15)
    apcs = tuple(
        dataclasses.replace(
            records.apcs[0], apc=number, position=number, normal_routine="x" * 200, origin="word " * 40 * (number % 2)
        )
        for number in range(9)
    )
    made = Records(records.image, records.threads, apcs, records.findings, records.drivers)
    found = chain.make_chains(together([made]))[0]
    drawing = diagram.draw(found)
    assert found.left_out == 3
    for one in drawing.boxes:
        assert one.y + one.height <= drawing.height
        assert one.x + one.width <= drawing.width
        for other in drawing.boxes:
            assert one is other or one.x != other.x or one.y + one.height <= other.y or other.y + other.height <= one.y


def test_colours_can_be_read() -> None:
    """Text has a contrast of at least 4.5 to its ground in both schemes, as WCAG 2 asks for."""
    style = (Path(page.__file__).parent / "assets" / "report.css").read_text(encoding="utf-8")
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")[:2]
    for scheme in (light, dark.split("* {")[0]):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        pairs = [(level, f"{level}-band") for level in ("critical", "high", "medium", "low", "info")]
        pairs += [(ink, ground) for ink in ("text", "quiet", "link") for ground in ("page", "card", "band")]
        for ink, ground in pairs:
            one, other = sorted((luminance(colours[ink]), luminance(colours[ground])))
            assert (other + 0.05) / (one + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
