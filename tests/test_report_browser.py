"""A report as it is used: in headless Chromium, by pointer, by keyboard and on a phone."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import levit_search as ls
from levit_search import table
from tests.conftest import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
    ),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
]


@dataclass
class Opened:
    """A page, and what went wrong with it."""

    page: "Page"
    errors: list[str] = field(default_factory=list)
    """Of the console, and what was asked of any network."""

    def until(self, condition: str, argument: object = None) -> None:
        """Wait for JavaScript that is true."""
        self.page.wait_for_function(condition, arg=argument, timeout=30_000)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def cells(self, column: str) -> list[str]:
        """What the rows of the table have in a column."""
        script = """(title) => {
            const table = document.getElementById("trials-table");
            const heads = [...table.tHead.rows[0].cells];
            const at = heads.findIndex((cell) => cell.textContent.startsWith(title));
            return [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
        }"""
        return list(self.page.evaluate(script, column))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a made-up study with two targets, predictions, rungs, failures and weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import made_study

    config = ls.read_space(
        "levit",
        {
            "storage": "journal",
            "latency.method": "predicted",
            "targets": {"pi": "ssh://pi"},
            "objectives": ["top1_percent", "latency_ms", "latency_ms@pi"],
        },
    )
    study = made_study.make(tmp_path_factory.mktemp("made") / "study", config, 80)
    made_study.weigh(study)
    return ls.write_report(study)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: "Browser", report: Path, **context: Any) -> Opened:
    tab = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    found = Opened(tab.new_page())

    def recorded(route: "Route") -> None:
        url = route.request.url
        if url == report.as_uri():
            route.continue_()
            return
        found.errors.append(f"asked for {url}")
        route.abort()

    tab.route("**/*", recorded)
    page = found.page
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            found.errors.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.goto(report.as_uri())
    found.until("performance.getEntriesByName('interactive').length > 0")
    found.until("document.querySelector('#front-picture svg') !== null")
    return found


@pytest.fixture(scope="module")
def shared(browser: "Browser", report: Path) -> Iterator[Opened]:
    found = opened(browser, report)
    yield found
    found.page.context.close()


@pytest.fixture
def desktop(shared: Opened) -> Iterator[Opened]:
    """One page for all tests, which start at its top; nothing may go wrong in any of them."""
    shared.page.evaluate("window.scrollTo(0, 0)")
    shared.page.mouse.move(2, 2)
    yield shared
    assert shared.errors == []


def where(of: Opened, trace: str, index: int) -> tuple[float, float, int]:
    """Where on the screen a point of the front's picture is, and its trial."""
    script = """([name, index]) => {
        const marks = [...document.querySelectorAll(
            `#front-picture .chart:not([hidden]) [data-series="${name}"] [data-trial]`)];
        const mark = marks.filter((each) => each.getClientRects().length)[index];
        const box = mark.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2, Number(mark.dataset.trial)];
    }"""
    of.page.locator("#front-picture").scroll_into_view_if_needed()
    x, y, trial = of.page.evaluate(script, [trace, index])
    return x, y, trial


def trial(of: Opened, number: int) -> dict[str, Any]:
    script = """(number) => JSON.parse(document.getElementById("study").textContent)
        .trials.find((trial) => trial.trial === number)"""
    found: dict[str, Any] = of.page.evaluate(script, number)
    return found


@pytest.mark.slow
def test_each_target_has_a_tab_that_draws_its_own_axis(desktop: Opened) -> None:
    tabs = desktop.page.locator("#front-tabs [role=tab]")
    assert tabs.all_inner_texts() == ["Latency", "Latency on pi", "FLOPs", "Parameters"]
    for name, title in (("Latency on pi", "Latency on pi, ms"), ("FLOPs", "FLOPs, M")):
        desktop.page.get_by_role("tab", name=name, exact=True).click()
        shown = desktop.page.locator("#front-picture svg:visible text")
        assert title in shown.all_text_contents()
    assert "Not an objective" in desktop.text("#front-note")
    desktop.page.get_by_role("tab", name="Latency", exact=True).click()
    assert (
        "Latency, ms" in desktop.page.locator("#front-picture svg:visible text").all_text_contents()
    )
    assert tabs.first.get_attribute("aria-selected") == "true"


def test_hovering_over_a_point_shows_its_network(desktop: Opened) -> None:
    x, y, number = where(desktop, "front", 2)
    desktop.page.mouse.move(x - 30, y - 30)
    desktop.page.mouse.move(x, y, steps=4)
    desktop.until("() => !document.getElementById('tip').hidden")
    shown = desktop.text("#tip")
    network = trial(desktop, number)
    assert f"trial {number}" in shown
    assert "".join(network["architecture"].split()) in "".join(shown.split())
    assert network["texts"]["top1_percent"] in shown
    assert f"(95 %: {network['accuracy']['interval']})" in shown


def test_each_accuracy_in_the_table_has_its_interval(desktop: Opened) -> None:
    desktop.page.locator("#trials").scroll_into_view_if_needed()
    desktop.until("() => document.querySelectorAll('#trials-table tbody tr').length > 0")
    accuracies, intervals = desktop.cells("top-1 %"), desktop.cells("95 % interval")
    assert [bool(text) for text in accuracies] == [bool(text) for text in intervals]
    for accuracy, interval in zip(accuracies, intervals, strict=True):
        if accuracy:
            low, high = map(float, interval.split(" to "))
            assert low < float(accuracy) < high
    assert set(desktop.cells("vs best")) >= {"best", "same", ""}


def test_networks_in_int8_are_beside_those_in_float(browser: "Browser", tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import made_study

    objectives = ["top1_int8_percent", "latency_int8_ms", "latency_ms"]
    config = ls.read_space("levit", {"storage": "journal", "objectives": objectives})
    study = made_study.make(tmp_path / "study", config, 40)
    found = opened(browser, ls.write_report(study))
    page, front = found.page, table.front(study.records(), config.objectives)
    assert "In int8" in page.locator("#sections").all_inner_texts()[0]
    page.locator("#int8 table a").first.click()
    trial = int(page.evaluate("location.hash").removeprefix("#trial-"))
    found.until(
        "(n) => document.getElementById('network-title').textContent.endsWith(n)", f"{trial}"
    )
    assert trial in {record.trial for record in front}
    cells = page.locator("#beside-float tbody tr").first.locator("th, td").all_inner_texts()
    values = next(record.values for record in front if record.trial == trial)
    names = ("top1_percent", "top1_int8_percent")
    assert cells[:3] == ["top-1 %", *(table.figure(name, values[name]) for name in names)]
    mark = page.locator(f"#int8-drop svg:visible [data-trial='{trial}']")
    mark.hover()
    found.until("() => !document.getElementById('tip').hidden")
    assert (
        f"int8 drop {table.figure('int8_drop_points', values['int8_drop_points'])}"
        in found.text("#tip")
    )
    assert found.errors == []
    page.context.close()


def test_a_search_that_guesses_says_so_at_the_top(browser: "Browser", tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import made_study

    study = made_study.make(tmp_path / "study", ls.read_space("levit", {"storage": "journal"}), 20)
    storage, study_id = study.open_storage()
    data = {**study.attributes()["data"], "guess_percent": 95.0}
    storage.set_study_user_attr(study_id, "data", data)
    found = opened(browser, ls.write_report(study))
    notice, picture = (found.page.locator(id) for id in ("#verdict", "#front-picture"))
    assert "No network is better than guessing" in notice.inner_text()
    assert notice.locator("li").count() == len(ls.verdict(study).advice) > 2
    above, below = notice.bounding_box(), picture.bounding_box()
    assert above is not None and below is not None and above["y"] < below["y"]
    assert found.errors == []
    found.page.context.close()


def test_choosing_a_point_shows_its_network_below(desktop: Opened) -> None:
    x, y, number = where(desktop, "front", 1)
    desktop.page.mouse.move(x - 20, y)
    desktop.page.mouse.move(x, y, steps=3)
    desktop.page.mouse.click(x, y)
    desktop.until(
        "(t) => document.getElementById('network-title').textContent.includes(t)", str(number)
    )
    assert trial(desktop, number)["architecture"].split()[0] in desktop.text("#network-body")


def test_the_chosen_network_has_figures_a_diagram_and_maps(desktop: Opened) -> None:
    desktop.page.locator("#network-choice").select_option(index=1)
    body = desktop.page.locator("#network-body")
    assert "95 % interval" in body.inner_text()
    assert body.locator("svg.drawing").count() == 2
    assert body.locator("svg.drawing image").count() > 0
    number = desktop.page.locator("#network-choice").input_value()
    desktop.page.get_by_role("button", name="Next", exact=True).click()
    assert desktop.page.locator("#network-choice").input_value() != number
    desktop.page.get_by_role("button", name="Previous", exact=True).click()
    assert desktop.page.locator("#network-choice").input_value() == number


def test_the_table_sorts_both_ways_with_the_unknown_last(desktop: Opened) -> None:
    desktop.page.locator("#trials").scroll_into_view_if_needed()
    head = desktop.page.get_by_role("button", name="latency ms", exact=True)
    for name, is_descending in (("ascending", False), ("descending", True)):
        head.click()
        cell = desktop.page.locator("#trials-table th[data-key=latency_ms]")
        assert cell.get_attribute("aria-sort") == name
        texts = desktop.cells("latency ms")
        known = [float(text) for text in texts if text]
        assert known == sorted(known, reverse=is_descending)
        assert texts[: len(known)] == [text for text in texts if text]


def test_the_table_filters_by_text_and_outcome(desktop: Opened) -> None:
    desktop.page.locator("#trials-outcome").select_option("failed")
    assert set(desktop.cells("outcome")) == {"failed"}
    assert "<b>& so on</b>" in desktop.cells("reason")[0]  # as a text
    desktop.page.locator("#trials-outcome").select_option("all")
    desktop.page.locator("#trials-text").fill("not finite")
    assert set(desktop.cells("outcome")) == {"failed"}
    desktop.page.locator("#trials-text").fill("")
    assert desktop.text("#trials-count") == "80 of 80"


def test_choosing_a_row_goes_to_its_network_even_without_a_diagram(desktop: Opened) -> None:
    desktop.page.locator("#trials-outcome").select_option("stopped")
    row = desktop.page.locator("#trials-table tbody tr").nth(2)
    number = row.get_attribute("data-trial")
    row.click()
    assert number in desktop.text("#network-title")
    assert f"--pick trial={number}" in desktop.text("#network-body")
    assert "stopped at epoch" in desktop.text("#network-body")
    desktop.page.locator("#trials-outcome").select_option("all but repeats")


def test_pressing_values_keeps_the_networks_that_have_them(desktop: Opened) -> None:
    desktop.page.locator("#lines").scroll_into_view_if_needed()
    lines = desktop.page.locator("#lines svg:visible path[data-trial]:visible")
    everything = lines.count()
    desktop.page.get_by_role("button", name="num_stages 2", exact=True).click()
    kept = lines.count()
    assert 0 < kept < everything
    assert desktop.text("#lines-count") == f"{kept} of {everything} networks"
    desktop.page.locator("#lines-clear").click()
    assert lines.count() == everything


def test_every_section_is_drawn(desktop: Opened) -> None:
    for name in ("progress", "curves", "prediction"):  # without anyone going there
        assert desktop.page.locator(f"#{name}-picture svg:visible").count() == 1
    desktop.until("() => document.querySelectorAll('#trials-table tbody tr').length > 1")
    assert desktop.page.locator("#importance-picture svg:visible rect").count() > 1
    assert "biased" in desktop.text("#importance-note")
    assert "stopped at a rung" in desktop.text("#curves-note")
    assert "not finite" in desktop.text("#failures")
    assert "class" in desktop.text("#setup")
    for name in ("Epochs", "Trials"):
        desktop.page.locator("#progress-tabs").get_by_role("tab", name=name).click()


def test_the_theme_switches_with_the_pictures(desktop: Opened) -> None:
    paper = """() => [getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector("#front-picture .drawing-ink")).fill].join()"""
    switch = desktop.page.locator("#theme")
    light = desktop.page.evaluate(paper)
    assert switch.get_attribute("aria-pressed") == "false"
    switch.click()
    assert switch.get_attribute("aria-pressed") == "true"
    desktop.until(
        f"(light) => ({paper})() !== light && ({paper})().includes('rgb(21, 23, 28)')", light
    )
    switch.click()
    assert desktop.page.evaluate(paper) == light


def test_the_page_can_be_walked_by_keyboard_alone(desktop: Opened) -> None:
    page, press = desktop.page, desktop.page.keyboard.press
    focused: Callable[[], str] = lambda: page.evaluate("document.activeElement.id")  # noqa: E731
    page.evaluate("document.activeElement.blur()")
    page.evaluate("document.querySelector('.skip').focus()")
    press("Enter")
    assert focused() == "content"
    press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tab"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("ArrowRight")
    assert focused() == "front-tabs-1"
    press("End")
    assert page.evaluate("document.activeElement.textContent") == "Parameters"
    press("Home")
    assert "Latency, ms" in page.locator("#front-picture svg:visible text").all_text_contents()
    press("Tab")
    assert focused() == "front-picture"
    press("ArrowRight")
    press("ArrowRight")
    told = desktop.text("#front-told")
    number = told.split(":")[0].removeprefix("Trial ")
    assert trial(desktop, int(number))["architecture"].split()[0] in told
    press("Enter")
    assert number in desktop.text("#network-title")
    page.locator("#trials-table thead button").first.focus()
    press("Enter")
    assert page.locator("#trials-table th").first.get_attribute("aria-sort") != "none"
    page.locator("#trials-table tbody tr").first.focus()
    press("ArrowDown")
    second = page.evaluate("document.activeElement.dataset.trial")
    press("Enter")
    assert second in desktop.text("#network-title")
    assert focused() == "network-title"


@pytest.mark.slow
def test_a_phone_shows_all_of_it_without_scrolling_sideways(
    browser: "Browser", report: Path
) -> None:
    phone = opened(
        browser,
        report,
        viewport={"width": 375, "height": 700},
        is_mobile=True,
        has_touch=True,
        color_scheme="dark",
    )
    for name in phone.page.evaluate(
        "[...document.querySelectorAll('main > section')].map((section) => section.id)"
    ):
        phone.page.evaluate("(id) => document.getElementById(id).scrollIntoView()", name)
        phone.page.wait_for_timeout(50)
    assert phone.page.locator("#prediction-picture svg:visible").count() == 1
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 375
    assert phone.page.locator("#theme").get_attribute("aria-pressed") == "true"
    assert phone.errors == []
    phone.page.context.close()


def test_a_link_to_a_trial_opens_it_and_texts_have_contrast(
    browser: "Browser", report: Path
) -> None:
    found = opened(browser, report)
    found.page.evaluate("location.hash = '#trial-5'")
    found.until("() => document.getElementById('network-title').textContent.includes('trial 5')")
    for theme in ("light", "dark"):
        found.page.evaluate("(theme) => { document.documentElement.dataset.theme = theme }", theme)
        ratios = found.page.evaluate(CONTRAST, COLOURS)
        assert min(ratios.values()) >= 4.5, (theme, ratios)
    assert found.errors == []
    found.page.context.close()


COLOURS = ["ink", "soft", "link", "front", "start", "known", "reference"]  # of texts
# WCAG 2.2's contrast of the page's colours on its two backgrounds; the smaller one counts.
CONTRAST = """(names) => {
    const style = getComputedStyle(document.documentElement);
    const light = (name) => {
        const hex = style.getPropertyValue("--" + name).trim();
        const [r, g, b] = [1, 3, 5].map((from) => parseInt(hex.slice(from, from + 2), 16) / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return Object.fromEntries(names.map((name) =>
        [name, Math.min(ratio(light(name), light("paper")), ratio(light(name), light("panel")))]));
}"""
