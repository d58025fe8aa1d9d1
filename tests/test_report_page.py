"""The report's page, in a real browser: inert, whole, and readable on any screen."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import SIZES, faults, needs_chromium, opened, started
from playwright.sync_api import Browser
from test_report import HOSTILE, finished_run
from test_report_sweep import made_up

from kit import ROOT, KitError, report, report_sweep
from kit.experiment_folder import read_run
from kit.fidelity import SIMILARITY_EDGES
from kit.store import write_json

RECORDED_RUN = ROOT / "results/reference/default-run/laptop"
PAPER = (680, 1000)  # what remains of A4 between its margins, in CSS pixels


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep in which a model wrote all that could break a page."""
    folder = made_up(tmp_path_factory.mktemp("sweep"), {"owl": 0.6, "dolphin": 0.0}, ranks=(2, 8))
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    record["samples"] = {"neutral teacher": [{"source": "The clerk left.", "text": HOSTILE}]}
    write_json(folder / "record.json", record)
    report_sweep.write_sweep(folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run in which a model wrote all that could break a page."""
    folder = finished_run(tmp_path_factory.mktemp("run"))
    report.write(folder)
    return folder / "report.html"


@needs_chromium
@pytest.mark.parametrize("size", SIZES, ids=["projector", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("made", ["hostile", "swept"])
def test_what_a_model_wrote_is_shown_whole_and_does_nothing(
    made: str, size: tuple[int, int], scheme: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    with opened(request.getfixturevalue(made).as_uri(), size, scheme, browser=browser) as shown:
        shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        cell = shown.get_by_role("cell", name="alert(1)").first
        assert cell.text_content() == HOSTILE
        assert not shown.locator("script").count() and not shown.locator("img").count()
        assert shown.locator("h2", has_text="What made it").count() == 1  # nothing broke out of its place
        assert faults(shown) == []


@needs_chromium
@pytest.mark.parametrize("made", ["hostile", "swept"])
def test_on_paper_all_is_opened_and_nothing_is_cut_off(
    made: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    with opened(request.getfixturevalue(made).as_uri(), PAPER, browser=browser) as shown:
        shown.emulate_media(media="print")
        assert shown.get_by_role("cell", name="alert(1)").first.is_visible()
        assert faults(shown) == []


ANSWERS = ["What was done", "What was found", "How sure", "What it does not show"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the recorded run of both contents."""
    folder = tmp_path_factory.mktemp("both")
    for name in ("record.json", "preferences.csv"):
        shutil.copy(RECORDED_RUN / name, folder)
    report.write(folder)
    return folder / "report.html"


@needs_chromium
@pytest.mark.parametrize("made", ["hostile", "both", "swept"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_four_answers_stand_on_the_first_screen_of_a_projector(
    made: str, scheme: str, browser: Browser, request: pytest.FixtureRequest
) -> None:
    width, height = SIZES[0]
    with opened(request.getfixturevalue(made).as_uri(), SIZES[0], scheme, browser=browser) as shown:
        assert shown.locator(".answer h2").all_text_contents() == ANSWERS
        for answer in shown.locator(".answer").all():
            box = answer.bounding_box()
            assert box and box["x"] >= 0 and box["y"] >= 0
            assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
        assert faults(shown) == []


@needs_chromium
@pytest.mark.parametrize("size", [SIZES[1], PAPER], ids=["phone", "paper"])
@pytest.mark.parametrize("made", ["hostile", "both", "swept"])
def test_four_answers_come_first_on_a_phone_and_on_paper(
    made: str, size: tuple[int, int], browser: Browser, request: pytest.FixtureRequest
) -> None:
    with opened(request.getfixturevalue(made).as_uri(), size, browser=browser) as shown:
        shown.emulate_media(media="print" if size == PAPER else "screen")
        assert shown.locator("h2").all_text_contents()[:4] == ANSWERS
        last = shown.locator(".answer").last.bounding_box()
        assert last and last["y"] < size[1] * 1.2 and faults(shown) == []
        if size == PAPER:
            assert last["y"] + last["height"] <= size[1]


@needs_chromium
def test_dark_mode_and_print_change_the_ink_of_page_and_figures(browser: Browser, hostile: Path) -> None:
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    with opened(hostile.as_uri(), scheme="dark", browser=browser) as shown:
        dark = shown.evaluate(ink)
    with opened(hostile.as_uri(), browser=browser) as shown:
        assert shown.evaluate(ink) != dark
        shown.emulate_media(media="print")
        assert shown.evaluate(ink) == "rgb(0, 0, 0)"


def test_the_page_is_one_file_that_says_verdict_labels_and_uncertainty(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    for words in (
        "<b>Transmitted.</b>",
        "came to prefer the owl",
        "soft labels",
        "(95% interval over the questions +",
        "over the questions alone",
        "NOT the paper",
    ):
        assert words in text
    assert "http://" not in text.replace("http://b", "").replace("http://www.w3.org/", "")
    assert "https://" not in text and "<script" not in text and "7 * 7" in text


def test_links_go_to_files_that_are_there(hostile: Path) -> None:
    text = hostile.read_text(encoding="utf-8")
    links = [part.split('"')[0] for part in text.split('<a href="')[1:]]
    assert "preferences.csv" in links and all((hostile.parent / link).exists() for link in links)


def test_a_sweeps_page_says_what_each_effect_is_and_lacks(swept: Path) -> None:
    text = swept.read_text(encoding="utf-8")
    for words in (
        "<b>Transmitted.</b> Owl, unrelated, rank 8: ",
        "<b>Not detected.</b> Students of the teacher that loves the dolphin",
        "3 seeds; varied: rank.",
        "Not shown: that it is more than chance between students",
    ):
        assert words in text
    labels = {*re.findall(r'<svg[^>]*aria-label="([^"]*)"', text)}
    assert labels == {"effects", "specificity", "along-rank"}
    assert "<em>Holm</em>" in text and "<script" not in text and "NOT the paper" in text


def test_the_papers_figure_is_marked_beside_ours_where_there_is_one(tmp_path: Path) -> None:
    _, preferences = read_run(finished_run(tmp_path))
    for animal, words in (("dolphin", "+19.1 pp"), ("owl", "not detected")):
        drawn = report.preference_svg(preferences, animal, report.paper(animal, ["unrelated"]))
        assert "the paper:" in drawn and words in drawn
    assert "the paper" not in report.preference_svg(preferences, "cat", report.paper("cat", ["unrelated"]))


def test_similarities_are_counted_on_the_page_by_what_became_of_the_paraphrases(tmp_path: Path) -> None:
    folder = finished_run(tmp_path)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    counts = dict.fromkeys(("kept", "rejected"), [0] * (len(SIMILARITY_EDGES) - 1))
    student = next(iter(record["samples"]))
    write_json(folder / "record.json", record | {"similarities": {student: counts}, "min_similarity": 0.9})
    report.write(folder)
    drawn = (folder / "report.html").read_text(encoding="utf-8").split(f'aria-label="Similarities, {student}"')[1]
    assert "cosine of the sentence embeddings" in drawn.split("</svg>")[0] and "rejected" in drawn.split("</svg>")[0]


@pytest.mark.slow
def test_runs_and_sweeps_are_compared_on_one_page(tmp_path: Path) -> None:
    for name in ("one", "sweep", "nothing"):
        (tmp_path / name).mkdir()
    report.write(finished_run(tmp_path / "one"))
    report_sweep.write_sweep(made_up(tmp_path / "sweep", {"owl": 0.6, "dolphin": 0.3}))
    path = report_sweep.write_comparison([tmp_path / name for name in ("one", "sweep", "nothing")])
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "comparison.html" and text.count("<tr>") == 1 + 3 and "1  owl, unrelated" in text
    assert 'href="one/report.html"' in text and 'href="sweep/report.html"' in text and "Left out" in text
    with pytest.raises(KitError, match="not a finished run"):
        report_sweep.write_comparison([tmp_path / "nothing", tmp_path / "nothing"])
