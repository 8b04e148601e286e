"""The Code tab in a real browser: ghost text, files read first, and what an answer cost."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from narrows.economics.money import shown
from narrows.economics.prices import Tokens
from narrows.engine.model import Model
from narrows.text.fim import fim_prompt
from tests.server.browsing import BOOK, Visit, ghost, write
from tests.server.scripted import ENDLESS, reply, wait_for
from tests.text.conversations import EMBEDDED

TODAY = datetime.now(UTC).date()
ELSEWHERE = ("deepseek-v4-flash", "deepseek-v4-pro", "claude-opus-4.8")


def test_the_first_visit_completes_the_sample_and_tab_accepts_it(visit: Visit, embedded: Model) -> None:
    page = visit.open(visit.house.key())
    expect(page.locator("#code-status")).to_have_text("Tab accepts.")
    editor = page.locator("#editor")
    text, at = editor.evaluate("area => [area.value, area.selectionEnd]")
    wanted = embedded.generate(text[:at], suffix=text[at:], max_tokens=64).text.split("\n\n")[0]
    assert wanted == "return self._values[key]"
    expect(ghost(page)).to_have_text(wanted)
    expect(page.locator("#code-live")).to_have_text(f"Suggestion: {wanted}. Tab accepts it, Escape dismisses it.")
    editor.focus()
    page.keyboard.press("Tab")
    expect(editor).to_have_value(text[:at] + wanted + text[at:])
    expect(ghost(page)).to_have_count(0)
    page.keyboard.press("Control+z")
    expect(editor).to_have_value(text)
    page.get_by_role("button", name="Complete", exact=True).click()
    page.get_by_role("button", name="Accept").click()
    expect(editor).to_have_value(text[:at] + wanted + text[at:])
    expect(editor).to_be_focused()
    visit.check()


def test_what_it_says_of_costs_is_the_price_books(visit: Visit) -> None:
    page = visit.open(visit.house.key("payer"))
    sums = dict.fromkeys(("embedded", *ELSEWHERE), 0)
    for number in (1, 2):
        heading = page.locator("#code-figures h3")
        expect(heading).to_have_text(f"Since you opened the page: {number} answer{'s' if number > 1 else ''}")
        row = visit.house.ledger.requests(limit=1)[0]
        tokens = Tokens(row.hit, row.miss, row.output)
        costs = {"embedded": row.cost} | {name: BOOK.price(name, TODAY).cost(tokens) for name in ELSEWHERE}
        sums = {name: sums[name] + cost for name, cost in zip(sums, costs.values(), strict=True)}
        first = page.locator("#code-figures dl").first.locator("dd").all_inner_texts()
        assert first[:3] == [f"{count:,}" for count in (row.hit + row.miss, row.hit, row.output)]
        assert re.fullmatch(r"\d+\.\d\d s", first[3])
        for table, told in zip(page.locator("#code-figures table").all(), (costs, sums), strict=True):
            own = next(iter(told.values()))
            lines = [line.locator("th, td").all_inner_texts() for line in table.locator("tbody tr").all()]
            assert {name: cost.strip() for name, cost, _ in lines} == {name: shown(cost) for name, cost in told.items()}
            for (_, _, ratio), cost in zip(lines, told.values(), strict=True):
                assert float(ratio.strip("×").replace(",", "")) == pytest.approx(cost / own, rel=0.005)
        places = "rows => new Set(rows.map((row) => row.lastChild.previousSibling.getBoundingClientRect().right)).size"
        assert page.locator("#code-figures tbody tr").evaluate_all(places) == 1
        page.get_by_role("button", name="Complete", exact=True).click()
    visit.check()


def test_typing_asks_after_a_pause_and_what_the_ghost_says_keeps_it(visit: Visit) -> None:
    script = visit.house.script
    page = visit.open(visit.house.key(), typing=True, model="scripted")
    script.replies = [reply("alpha = beta(gamma)")]
    page.locator("#editor").fill("")
    page.locator("#editor").press_sequentially("x = 1\n", delay=20)
    expect(ghost(page)).to_have_text("alpha = beta(gamma)")
    assert len(script.jobs) == 1
    assert script.jobs[0].prompt == [EMBEDDED.bos_id, *EMBEDDED.encode("x = 1\n")]
    page.keyboard.type("alp")
    expect(ghost(page)).to_have_text("ha = beta(gamma)")
    page.keyboard.press("Control+ArrowRight")
    expect(page.locator("#editor")).to_have_value("x = 1\nalpha")
    for word in (" =", " beta", "("):
        page.keyboard.press("Control+ArrowRight")
        expect(page.locator("#editor")).to_have_value(re.compile(re.escape(word) + "$"))
    expect(ghost(page)).to_have_text("gamma)")
    page.keyboard.press("ArrowLeft")
    expect(ghost(page)).to_have_count(0)
    assert len(script.jobs) == 1
    visit.check()


def test_other_words_cancel_the_request_on_the_server_too(visit: Visit) -> None:
    script = visit.house.script
    page = visit.open(visit.house.key("hasty"), model="scripted")
    script.replies, script.pause = [ENDLESS], 0.03
    write(page, "x = ")
    page.keyboard.press("Control+Space")
    expect(ghost(page)).to_contain_text("endless")
    script.ended.clear()
    page.keyboard.type("9")
    expect(ghost(page)).to_have_count(0)
    wait_for(script.ended.is_set, 10)
    wait_for(lambda: visit.house.ledger.requests(limit=1)[0].outcome == "cut", 10)
    visit.check()


def test_escape_dismisses_and_lets_tab_leave_the_editor(visit: Visit) -> None:
    script = visit.house.script
    page = visit.open(visit.house.key(), model="scripted")
    script.replies = [reply("one()")]
    write(page, "x = ")
    page.keyboard.press("Control+Space")
    expect(ghost(page)).to_have_text("one()")
    page.keyboard.press("Escape")
    expect(ghost(page)).to_have_count(0)
    expect(page.locator("#code-live")).to_be_empty()
    page.keyboard.press("a")
    page.keyboard.press("Tab")
    expect(page.locator("#editor")).to_have_value("x = a    ")
    page.keyboard.press("Enter")
    page.keyboard.type("  if b:")
    page.keyboard.press("Enter")
    expect(page.locator("#editor")).to_have_value("x = a    \n  if b:\n      ")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    expect(page.locator("#editor")).not_to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#editor")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#editor")).not_to_be_focused()
    visit.check()


def test_what_is_seen_lies_where_the_text_areas_own_letters_lie(visit: Visit) -> None:
    page = visit.open(visit.house.key())
    line = "def find(self, n=12.5e3): return \"text\" + 'é漢' or call(x)  # 1 comment "
    write(page, line * 6 + "\n" + "\t" + line * 6 + "\n" * 70)
    page.locator("#editor").evaluate("is => is.scrollTo(1e6, 1e6)")
    # Where the text begins, seen from the window, and how high it is.
    area = page.locator("#editor").evaluate(
        "is => [-is.scrollLeft, -is.scrollTop, is.scrollHeight - parseFloat(getComputedStyle(is).paddingBottom)]"
    )
    theirs = """is => [is.getBoundingClientRect().left - is.parentElement.getBoundingClientRect().left - 1,
        -is.scrollTop, is.scrollHeight - parseFloat(getComputedStyle(is).paddingBottom)]"""
    assert area[0] < 0 > area[1]
    wait_for(lambda: page.locator("#mirror").evaluate(theirs) == pytest.approx(area, abs=0.5), 5)
    visit.check()


def test_all_of_a_long_suggestion_can_be_seen(visit: Visit) -> None:
    script = visit.house.script
    page = visit.open(visit.house.key(), model="scripted")
    script.replies = [reply("word " * 50)]
    outside = """is => {
      const view = document.querySelector('#editor').getBoundingClientRect();
      const range = document.createRange();
      range.selectNodeContents(is);
      return [...range.getClientRects()].filter((one) => one.width && (one.left < view.left ||
        one.right > view.right || one.bottom > view.bottom)).length;
    }"""
    for text in ("x = ", "x = " + "y + " * 60):  # the second is wider than the editor
        write(page, text)
        page.locator("#editor").evaluate("is => { is.blur(); is.focus() }")  # scrolls to the cursor
        page.keyboard.press("Control+Space")
        expect(page.locator("#code-status")).to_have_text("Tab accepts.")
        assert ghost(page).evaluate("is => is.getClientRects().length") > 1
        assert page.locator("#editor").evaluate("is => is.scrollLeft > 0") == (len(text) > 100)
        assert ghost(page).evaluate(outside) == 0
    visit.check()


def test_it_says_how_much_of_a_long_prompt_is_read(visit: Visit) -> None:
    script = visit.house.script
    page = visit.open(visit.house.key(), model="scripted")
    script.replies, script.pause, script.steps = [reply("one()")], 0.6, 5
    write(page, "x = 1\n" * 300)
    page.keyboard.press("Control+Space")
    expect(page.locator("#code-status")).to_have_text(re.compile(r"Reading [\d,]+ of 1,\d{3} tokens"))
    bar = page.get_by_role("progressbar", name="Prompt that is read")
    assert 0 < float(bar.get_attribute("value") or 0) < float(bar.get_attribute("max") or 0)
    script.pause = 0.0
    expect(page.locator("#code-status")).to_have_text("Tab accepts.")
    expect(bar).to_be_hidden()
    visit.check()


def test_a_completion_ends_where_the_gap_ends(visit: Visit) -> None:
    script = visit.house.script
    page = visit.open(visit.house.key(), model="scripted")
    script.replies = [reply("a\nb\n\nc\n\n\nd")]
    for after, wanted in ((")", "a"), ("\n\nx = 1\n", "a\nb"), ("\nx = 1\n", "a\nb\n\nc"), ("", "a\nb\n\nc")):
        write(page, "f(", after)
        page.keyboard.press("Control+Space")
        expect(page.locator("#code-status")).to_have_text("Tab accepts.")
        assert ghost(page).inner_text() == wanted
    visit.check()


def drop(page: Page, place: str, *paths: Path) -> None:
    """Files and folders from outside, as a hand drops them."""
    box = page.locator(place).bounding_box()
    assert box is not None
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 9, "y": box["y"] + 9, "data": data})


def test_dropped_files_are_read_before_the_prompt_in_one_order(visit: Visit, tmp_path: Path) -> None:
    script = visit.house.script
    project = tmp_path / "project"
    for name, content in {
        "b.py": b"b = 2\n",
        "a/z.py": b"z = 26\n",
        ".git/config": b"hidden = True\n",
        "__pycache__/made.py": b"made = True\n",
        "image.bin": b"\xff\xfe\x00",
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(content)
    later = tmp_path / "later.py"
    later.write_text("later = 1\n")
    page = visit.open(visit.house.key(), model="scripted")
    script.replies = [reply("one()")]
    drop(page, "#context", project)
    expect(page.locator("#context-list .path")).to_have_text(["project/a/z.py", "project/b.py"])
    page.get_by_text("3 passed over").click()
    told = [line.replace("\n", " ") for line in page.locator("#context-passed-over li").all_inner_texts()]
    assert told == [
        "project/.git/ hidden",
        "project/__pycache__/ made by a tool",
        "project/image.bin not a text in UTF-8",
    ]
    drop(page, "#editor", later)
    page.set_input_files("#context-files-input", [tmp_path / "later.py"])  # again: it is there once
    paths = page.locator("#context-list .path")
    expect(paths).to_have_text(["project/a/z.py", "project/b.py", "later.py"])
    write(page, "x = ", "\ny = 1\n")
    page.keyboard.press("Control+Space")
    expect(ghost(page)).to_have_text("one()")
    files = ("z = 26\n", "b = 2\n", "later = 1\n")
    read = [token for text in files for token in (*EMBEDDED.encode(text), EMBEDDED.eos_id)]
    assert script.jobs[-1].prompt == fim_prompt(EMBEDDED, "x = ", "\ny = 1\n", read)
    page.get_by_role("button", name="Remove project/b.py").click()
    expect(paths).to_have_text(["project/a/z.py", "later.py"])
    page.get_by_role("button", name="Edit later.py").click()
    expect(page.locator("#editor")).to_have_value("later = 1\n")
    expect(paths).to_have_text(["project/a/z.py"])
    visit.check()


def test_what_does_not_fit_is_left_out_and_said(visit: Visit, tmp_path: Path) -> None:
    script = visit.house.script
    for name, lines in {"far.py": 3000, "middle.py": 900, "near.py": 10}.items():
        (tmp_path / name).write_text("".join(f"{name[0]}{number} = {number}\n" for number in range(lines)))
    page = visit.open(visit.house.key(), model="scripted")
    script.replies = [reply("one()")]
    page.set_input_files("#context-files-input", [tmp_path / name for name in ("far.py", "middle.py", "near.py")])
    expect(page.locator("#context-message")).to_have_text(
        "2 of 3 files do not fit whole into 4,096 tokens; those nearest to your code are read."
    )
    expect(page.locator("#context-list .path")).to_have_text(["middle.py", "near.py", "far.py"])
    expect(page.locator("#context-list .read").last).to_have_text("left out")
    write(page, "x = ")
    page.keyboard.press("Control+Space")
    expect(ghost(page)).to_have_text("one()")
    prompt = EMBEDDED.decode(script.jobs[-1].prompt)
    assert len(script.jobs[-1].prompt) <= 4096 - 64
    assert "m899 = 899" in prompt and "n9 = 9" in prompt
    assert "f0 = 0" not in prompt and "m0 = 0" not in prompt
    for word in ("one + ", "two + "):  # from the second on, the first having told how long tokens are
        page.keyboard.press("Escape")
        page.keyboard.type(word)
        page.keyboard.press("Control+Space")
        expect(ghost(page)).to_have_text("one()")
    second, third = (EMBEDDED.decode(job.prompt) for job in script.jobs[-2:])
    assert third.startswith(second)  # so that this is known already
    # Signs of which every one is a token: the server counts more than was guessed, and less is sent.
    write(page, "§" * 3900)
    page.keyboard.press("Control+Space")
    expect(ghost(page)).to_have_text("one()")
    visit.check(400)


@pytest.mark.parametrize(
    ("limits", "sentences"),
    [
        ({"budget": 10}, ("This is more than the key's budget.", "wait until", "Completing as you type is off now.")),
        ({"requests_per_minute": 1}, ("Too much at once for this key; it may go on in ", " s.", "in a minute")),
    ],
)
def test_a_key_at_its_limits_is_told_in_friendly_words(
    visit: Visit, limits: dict[str, int], sentences: tuple[str, ...]
) -> None:
    page = visit.open(visit.house.key(**limits), typing=True)
    if "requests_per_minute" in limits:
        expect(ghost(page)).not_to_be_empty()
        page.get_by_role("button", name="Complete", exact=True).click()
    notice = page.locator("#code-notice")
    for sentence in sentences:
        expect(notice).to_contain_text(sentence)
    asked = len(visit.asked)
    write(page, "x")
    page.keyboard.type(" = ")
    time.sleep(0.5)
    assert len(visit.asked) == asked
    visit.check(402, 429)
