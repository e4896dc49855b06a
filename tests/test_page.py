"""The page to try a pair, in a Chromium without a window."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.page_server import EXAMPLES, MODES, TEXT, FakeEngine, answer, run_of, served
from tsarch.data.plain_text import word_bounds
from tsarch.inputs.rows import TextEntity
from tsarch.serving import page as page_module
from tsarch.serving.access_tokens import AccessTokens
from tsarch.serving.app import make_app
from tsarch.serving.engine import ServiceError
from tsarch.serving.page import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

MARKS = """box => [...box.querySelectorAll('mark')].map(mark => {
  const range = document.createRange();
  range.setStart(box, 0);
  range.setEnd(mark, 0);
  return [range.toString(), mark.textContent, mark.dataset.type];
})"""
"""Of each mark: the text before it, its text and its type."""

CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const luminance = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    if (a === 0) return null;
    const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const behind = own => own
    ? luminance(getComputedStyle(own).backgroundColor) ?? behind(own.parentElement) : 1;
  const found = [];
  for (const own of document.querySelectorAll('body *')) {
    const texts = [...own.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
    if (!own.checkVisibility() || own.closest('button:disabled')) continue;
    for (const pseudo of [null, '::after']) {
      const style = getComputedStyle(own, pseudo);
      if (pseudo ? !style.content.includes('"') || style.content === '""' : !texts.length) continue;
      const [a, b] = [luminance(style.color), behind(own)].sort((x, y) => y - x);
      found.push([(a + 0.05) / (b + 0.05), own.tagName + (pseudo || '') + ' ' + own.textContent]);
    }
  }
  return found;
}"""
"""Of each element with a text of its own: contrast to what is behind it, and what it is."""

LONG_TASKS = """() => {
  window.tasks = [];
  const note = list => window.tasks.push(...list.getEntries().map(own => own.duration));
  new PerformanceObserver(note).observe({type: 'longtask'});
}"""
"""Notes how long, in ms, the page didn't react to anything."""


@pytest.fixture(scope="module")
def asked() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def address(asked: FakeEngine) -> Iterator[str]:
    with served(make_app(asked)) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox needs rights that root in a container hasn't.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Browser, asked: FakeEngine, address: str) -> Iterator[Page]:
    """The page, opened, in a fresh profile. No test may end with an error on its console, or with
    a request to another host."""
    vars(asked).update(vars(FakeEngine()))
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(5000)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    outside: list[str] = []
    context.route(
        lambda url: not url.startswith(address),
        lambda r: (outside.append(r.request.url), r.abort()),
    )
    told: list[str] = []
    own = context.new_page()
    own.on("console", lambda message: told.append(message.text))
    own.on("pageerror", lambda problem: told.append(str(problem)))
    opened = own.goto(address)
    policy = "content-security-policy"
    assert opened.headers[policy] == page().headers[policy.title()]
    own.wait_for_selector("#ask")
    yield own
    context.close()
    # Chromium itself tells of answers that are errors.
    assert [line for line in told if "server responded with a status of" not in line] == []
    assert outside == []


def example(tab: Page, task: str, number: int = 0) -> None:
    tab.select_option("#run", f"my-{task}")
    tab.select_option("#examples", str(number))


def predict(tab: Page) -> str:
    """Asks, and gives what is said in the end."""
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#status:has-text('done')")
    return tab.text_content("#status") or ""


def panel(tab: Page, mode: str, inside: str = "") -> Any:
    return tab.locator(f".panel[data-mode={mode}] {inside}")


def marks(tab: Page, mode: str) -> list[tuple[int, str, str]]:
    """(first code point, text, type) of what is marked."""
    found = panel(tab, mode, ".text").evaluate(MARKS)
    return [(len(before), text, kind) for before, text, kind in found]


def differing(tab: Page, mode: str) -> list[str]:
    return panel(tab, mode, "u.differs").all_text_contents()


def test_the_page_is_one_file_that_asks_no_other_host():
    text = page().body.decode()
    assert not re.search(r"(?:src|href|url|import|@import)\s*[=(]\s*[\"']?(?:https?:)?//", text)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    policy = page().headers["Content-Security-Policy"]
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_script_is_in_the_page():
    folder = page_module._FOLDER
    assert {own.name for own in folder.glob("*.js")} == set(page_module._SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["text", "words"])
def test_entities_are_marked_at_exactly_their_characters(tab, asked, number):
    example(tab, "ner", number)
    predict(tab)
    given = EXAMPLES["ner"][number]
    text = given if isinstance(given, str) else " ".join(given["tokens"])
    assert asked.asked == [("my-ner", [given], mode) for mode in MODES]
    for mode in MODES:
        assert panel(tab, mode, ".text").text_content() == text
        found = marks(tab, mode)
        assert [(kind, own) for _, own, kind in found] == [
            (e.type, e.text) for e in answer("ner", given, mode)
        ]
        for start, own, _ in found:
            assert text[start : start + len(own)] == own
        starts = [getattr(e, "start", None) for e in answer("ner", given, mode)]
        assert number == 1 or [start for start, _, _ in found] == starts
    assert tab.locator("#panels b").count() == 0, "texts are no markup"


@pytest.mark.slow
def test_words_on_which_modes_disagree_are_told_and_marked(tab):
    example(tab, "ner")
    said = predict(tab)
    words = ["Lovelace", "Zoe\u0308", "Müller", "New", "York"]
    share = 100 * len(words) / len(word_bounds(TEXT))
    assert f"{share:.1f} % of the words ({len(words)} of {len(word_bounds(TEXT))})" in said
    assert all(differing(tab, mode) == words for mode in MODES)
    tab.click("text=Which modes disagree")
    assert tab.text_content("tr:has-text('teacher and student_alone')").endswith("38.3 %")
    tab.click("text=The words on which they disagree")
    row = tab.locator("#summary .scroll tr:has-text('York')")
    row.wait_for()
    assert row.text_content() == "YorkI-LOCI-PERI-LOCI-LOC"


@pytest.mark.slow
def test_words_are_those_of_the_server(tab, asked):
    texts = [
        TEXT,
        "a_b «c» U.S. 3,5€ x\u00a0y\u3000z\ufeff 東京タワー",
        "don't–stop… ½ £5 ~`^ e\u0301",
    ]
    asked.answer = lambda task, own, mode: ()
    for text in texts:
        tab.fill("#fields textarea", text)
        assert f"All modes agree on all {len(word_bounds(text))} words" in predict(tab)


@pytest.mark.slow
def test_spans_inside_one_another_and_across_lines(tab, asked):
    text = "The University of New York in\nRome. " + "word\n" * 400 + "It ends\nhere."
    spans = ["University of New York", "New York", "York in\nRome", "Rome", "word\nIt ends\nhere"]
    entities = [
        TextEntity(f"T{n}", text.rindex(own), text.rindex(own) + len(own), own, 0.5)
        for n, own in enumerate(spans)
    ]
    asked.answer = lambda task, own, mode: tuple(entities)
    tab.fill("#fields textarea", text)
    predict(tab)
    assert panel(tab, "joint", ".text").text_content() == text
    for entity in entities:
        pieces = [own for own in marks(tab, "joint") if own[2] == entity.type]
        assert pieces[0][0] == entity.start
        assert "".join(own for _, own, _ in pieces) == entity.text
    assert panel(tab, "joint", "mark[data-label=T1]").count() == 1
    assert "not where the server" not in panel(tab, "joint").text_content()


@pytest.mark.slow
def test_labels_relations_answers_and_texts(tab):
    example(tab, "classification")
    assert "The modes disagree" in predict(tab)
    assert panel(tab, "joint", ".bars li").all_text_contents() == [
        "result0.700",
        "method0.200",
        "<i>odd</i>0.100",
    ]
    assert panel(tab, "student_alone", ".verdict").text_content() == "method 0.600"
    widths = panel(tab, "joint", ".bar > span").evaluate_all("all => all.map(b => b.style.width)")
    assert widths == ["70%", "20%", "10%"]

    example(tab, "relation")
    assert "All modes agree" in predict(tab)
    assert tab.locator(".words .head").all_text_contents() == ["Ann head", "Lee head"]
    assert tab.locator(".words .tail").all_text_contents() == ["Rome tail"]
    assert panel(tab, "joint", ".verdict").text_content() == "birthplace 0.900"
    assert marks(tab, "joint") == [(0, "Ann Lee", "head"), (20, "Rome", "tail")]

    example(tab, "qa")
    predict(tab)
    passage = EXAMPLES["qa"][0]["context"]
    assert marks(tab, "joint") == [(passage.index("Ann"), "Ann Lee", "answer")]
    assert panel(tab, "student_alone", ".verdict").text_content().startswith("No answer")
    assert differing(tab, "student_alone") == ["Ann", "Lee"]

    for task in ("translation", "summarization", "dialogue"):
        example(tab, task)
        predict(tab)
        assert panel(tab, "joint", ".text").text_content() == "The old mill has been lost 🌊"
        assert differing(tab, "joint") == ["has", "been", "🌊"]
        assert differing(tab, "student_alone") == ["was"]


@pytest.mark.slow
def test_rows_are_edited(tab, asked):
    example(tab, "relation")
    tab.check("input[value=tail]")
    for word in ("born", "in"):
        tab.click(f".words button:has-text('{word}')")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    predict(tab)
    tokens = EXAMPLES["relation"][0]["tokens"]
    assert asked.asked[-1][1] == [{"tokens": tokens, "head": [0, 2], "tail": [3, 6]}]

    tab.select_option("#run", "my-dialogue")
    tab.fill("#fields textarea", "Hello!")
    tab.click("text=Add a turn")
    tab.keyboard.type("Hello 👋")
    predict(tab)
    assert asked.asked[-1][1] == [{"history": ["Hello!", "Hello 👋"]}]

    tab.select_option("#run", "my-classification")
    tab.fill("#fields textarea", "We try.\n\nIt works.")
    tab.check("text=Each line is a sentence")
    predict(tab)
    assert [own["text"] for own in asked.asked[-1][1]] == ["We try.", "It works."]
    assert panel(tab, "joint", "h3").all_text_contents() == ["1. We try.", "2. It works."]

    tab.click("#as-json")
    tab.fill("#fields textarea", "[1")
    tab.keyboard.press("Control+Enter")
    assert "This isn't JSON" in tab.text_content("#alert")
    tab.fill("#fields textarea", '["one"]')
    predict(tab)
    assert asked.asked[-1][1] == ["one"]


@pytest.mark.slow
def test_columns_have_the_names_of_the_run(tab, asked):
    own = {"w": ["Ann", "left", "Rome"], "a": [0, 0], "b": [2, 2]}
    columns = {"tokens": "w", "head": "a", "tail": "b"}
    info = replace(run_of("relation"), columns=columns, examples=(own,), span_ends="inclusive")
    asked.infos = (info,)
    asked.answer = lambda *given: answer("classification", *given[1:])
    tab.reload()
    tab.select_option("#examples", "0")
    tab.click(".words button:has-text('left')")
    predict(tab)
    assert asked.asked[-1][1] == [{**own, "a": [0, 1]}]
    assert tab.locator("#run").is_hidden(), "there is one run only"


@pytest.mark.slow
def test_types_are_counted_and_hidden(tab):
    example(tab, "ner")
    predict(tab)
    rows = tab.locator("#summary tr:has(input)")
    assert [text.split() for text in rows.all_text_contents()] == [["LOC5455"], ["PER3432"]]
    tab.uncheck("[aria-label='Show LOC']")
    shown = panel(tab, "joint", "mark:not(.off)").all_text_contents()
    assert shown == ["Ada Lovelace", "Zoe\u0308 Müller", "ليلى حداد"]
    tab.check("[aria-label='Show LOC']")
    assert panel(tab, "joint", "mark:not(.off)").count() == 8


@pytest.mark.slow
def test_all_is_done_by_keyboard(tab):
    reached = set()
    for _ in range(20):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.value"))
        if tab.evaluate("document.activeElement === document.body"):
            break  # all round
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline in ("solid", "auto"), "focus is seen"
    wanted = {"access-button", "theme", "run", "examples", "predict", "clear", "as-json", *MODES}
    assert wanted <= reached
    tab.focus("#fields textarea")
    tab.keyboard.type("Rome and New York")
    predict(tab)
    panel(tab, "joint", ".text").focus()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Rome"
    assert "LOC, score 0.900" in tab.text_content("#tip")
    assert "characters 0–4" in tab.text_content("#tip")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.textContent") == "New York"
    tab.keyboard.press("Escape")
    assert tab.is_hidden("#tip")
    panel(tab, "joint", "summary").press("Enter")
    panel(tab, "joint", "td").first.wait_for()
    assert panel(tab, "joint", "td").all_text_contents() == [
        *("Rome", "LOC", "0.900", "0–4"),
        *("New York", "LOC", "0.900", "9–17"),
    ]
    panel(tab, "joint", "td button").first.press("Enter")
    assert tab.evaluate("document.activeElement.tagName") == "MARK"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only_and_all_can_be_read(tab, scheme):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.emulate_media(color_scheme=scheme)
    for task in EXAMPLES:
        example(tab, task)
        if task == "ner":
            tab.fill("#fields textarea", f"{TEXT}\n{'Donaudampfschiff' * 40}\n{'東京' * 40}")
        predict(tab)
        for summary in tab.locator("summary").all():
            summary.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, task
        wide = "all => all.filter(own => own.scrollWidth > own.clientWidth).length"
        assert tab.locator(".panel .text").evaluate_all(wide) == 0, task
        poor = [own for own in tab.evaluate(CONTRASTS) if own[0] < 4.5]
        assert poor == []


@pytest.mark.slow
def test_dark_by_the_system_or_by_the_switch(tab):
    def is_dark() -> bool:
        colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour))) < 200

    assert not is_dark()
    tab.emulate_media(color_scheme="dark")
    assert is_dark()
    tab.click("#theme")
    assert not is_dark()
    tab.reload()
    assert not is_dark()
    tab.click("#theme")
    assert is_dark()
    assert tab.get_attribute("#theme", "aria-pressed") == "true"


@pytest.mark.slow
def test_errors_of_the_server_say_what_to_do(tab, asked):
    tab.fill("#fields textarea", "Rome")
    asked.errors = [ServiceError(429, "The queue is full.", 1)]
    tab.click("#predict")
    tab.wait_for_selector("#status:has-text('The queue is full. Again in 1 s.')")
    tab.wait_for_selector("#status:has-text('done')")
    assert len(asked.asked) == 5, "asked again"

    asked.errors = [ServiceError(503, "It is being loaded.")]
    predict(tab)
    assert "The server isn't ready: It is being loaded." in panel(tab, "teacher").text_content()
    assert marks(tab, "joint") == [(0, "Rome", "LOC")]

    asked.asked, asked.errors = [], [ServiceError(413, "More than 9 words. Split it.")]
    tab.click("#predict")
    tab.wait_for_selector("#alert:has-text('Too large: More than 9 words. Split it.')")
    assert len(asked.asked) == 1, "other modes aren't asked in vain"

    tab.click("#alert button")
    tab.wait_for_selector("#status:has-text('done')")
    tab.click("#as-json")
    tab.fill("#fields textarea", "[1]")
    tab.click("#predict")
    tab.wait_for_selector("#alert:has-text('inputs[0]: is no text')")
    tab.click("#as-json")

    tab.fill("#fields textarea", "")
    tab.click("#predict")
    tab.wait_for_selector("#alert:has-text('Document is empty')")
    assert tab.evaluate("document.activeElement.tagName") == "TEXTAREA"


@pytest.mark.slow
def test_a_token_is_asked_for_and_stays_in_the_tab(chromium, asked):
    vars(asked).update(vars(FakeEngine()))
    token = "a-secret-of-the-server"
    with served(make_app(asked, AccessTokens([token]))) as address:
        context = chromium.new_context()
        tab = context.new_page()
        tab.goto(address)
        tab.wait_for_selector("#alert:has-text('A token is needed')")
        assert tab.evaluate("document.activeElement.id") == "token"
        tab.keyboard.type(token)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#ask")
        tab.fill("#fields textarea", "Rome")
        predict(tab)
        assert marks(tab, "joint") == [(0, "Rome", "LOC")]
        stores = "[...Object.values({...localStorage}), document.cookie, location.href].join()"
        assert "secret" not in tab.evaluate(stores)
        assert "secret" not in tab.content()
        assert "$TSARCH_SERVE_TOKEN" in tab.locator("#more pre").first.text_content()
        context.close()


@pytest.mark.slow
def test_a_request_is_cancelled(tab, asked):
    asked.wait_s = 0.5
    tab.fill("#fields textarea", "Rome")
    tab.click("#predict")
    assert tab.is_disabled("#predict")
    tab.wait_for_selector("#status:has-text('Asking student')")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#status:has-text('Cancelled')")
    assert marks(tab, "teacher") == [(0, "Rome", "LOC")]
    assert tab.is_enabled("#predict")
    assert len(asked.asked) == 2


@pytest.mark.slow
def test_the_same_request_from_a_shell_and_from_python(tab, asked):
    text = 'It\'s "Rome" \\ $HOME `x` %s\n\t👋 New York'
    tab.fill("#fields textarea", text)
    predict(tab)
    tab.click("text=Copy result as JSON")
    result = json.loads(tab.evaluate("navigator.clipboard.readText()"))
    assert result["inputs"] == [text]
    assert list(result["results"]) == list(MODES)
    assert result["results"]["joint"]["answers"][0][0]["text"] == "Rome"
    tab.click("text=The same request from a program")
    tab.select_option("[aria-label='Mode of the request']", "joint")
    for name, command in {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}.items():
        tab.click(f"text=Copy {name} line")
        line = tab.evaluate("navigator.clipboard.readText()")
        environ = {**os.environ, "NO_PROXY": "127.0.0.1"}
        done = subprocess.run([*command, line], capture_output=True, text=True, env=environ)
        assert done.returncode == 0, done.stderr
        assert asked.asked[-1] == ("my-ner", [text], "joint")
        assert "New York" in done.stdout


@pytest.mark.slow
def test_long_documents_stay_quick(tab, asked):
    line = "Ann Lee left Oslo for Rome and came back to New York, where she wrote 12 letters. "
    text = (line * 12 + "\n") * 100
    assert len(text) > 98_000
    places = [match.span() for match in re.finditer("Ann Lee|Oslo|Rome|New York", text)]
    entities = [TextEntity("LOC", *own, text[slice(*own)], 0.5) for own in places]
    kept = {mode: tuple(entities[n::7] if n else entities) for n, mode in enumerate(MODES)}
    asked.answer = lambda task, own, mode: kept[mode]
    tab.evaluate(LONG_TASKS)
    tab.fill("#fields textarea", text)
    tab.click("#predict")
    tab.wait_for_selector("#status:has-text('done')", timeout=30_000)
    assert panel(tab, "teacher", "mark").count() == len(entities)
    tab.uncheck("[aria-label='Show LOC']")
    assert panel(tab, "teacher", "mark:not(.off)").count() == 0
    assert max(tab.evaluate("window.tasks"), default=0) < 2000, "it answers to people meanwhile"


@pytest.mark.slow
def test_a_swap_between_modes_is_told(tab, asked):
    asked.versions = iter(["1", "1", "2", "2"])
    tab.fill("#fields textarea", "Rome")
    predict(tab)
    assert "The run was swapped meanwhile" in tab.text_content("#alert")
