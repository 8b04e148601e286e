"""The page in a real browser: who gets it, whose key it uses, and that everybody can use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

from narrows.server.page import PATHS
from tests.server.browsing import House, Visit, ghost
from tests.server.scripted import reply
from tests.server.test_door import ask


def test_its_files_answer_to_everybody_and_may_load_nothing_from_elsewhere(page_house: House) -> None:
    kinds = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml", "": "text/html"}
    for path in PATHS:
        status, _, told = ask(page_house.server, "GET", path)
        assert (status, told["cache-control"]) == (200, "no-cache")
        assert told["content-type"].startswith(kinds[path.rpartition(".")[2].strip("/")])
        assert (told["x-content-type-options"], told["referrer-policy"]) == ("nosniff", "no-referrer")
        assert told["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        )
        again = ask(page_house.server, "GET", path, headers={"If-None-Match": told["etag"]})
        assert (again[0], again[1]["text"], again[2]["etag"]) == (304, "", told["etag"])
        assert ask(page_house.server, "GET", path, headers={"Host": "evil.example"})[0] == 421
        assert ask(page_house.server, "HEAD", path)[0] == 200
    for path in ("/page/", "/page/nothing.js", "/page/../page.py", "/page/index.html", "//"):
        assert ask(page_house.server, "GET", path)[0] == 401


def test_without_a_key_it_asks_for_one_and_says_what_is_wrong_with_it(visit: Visit) -> None:
    page = visit.open()
    message = page.locator("#key-message")
    expect(message).to_have_text("This server answers to keys only. Enter yours to begin.")
    for name in ("Complete", "Sample"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()
    for name in ("model", "window"):
        expect(page.locator(f"#code-{name}")).to_be_disabled()
    expect(page.locator("#code-status")).to_contain_text("without a key")
    field = page.get_by_label("Key", exact=True)
    for wrong, why in (("nrw_wrong", "not known here"), ("nrw_ключ", "copy it again")):
        field.fill(wrong)
        page.keyboard.press("Enter")
        expect(message).to_contain_text(why)
        expect(field).to_have_value(wrong)
        expect(field).to_be_focused()
        expect(page.locator("#key-button")).to_have_text("Key")
        assert page.evaluate("localStorage['narrows.key']") is None
    page.get_by_role("tab", name="Usage").click()
    expect(page.locator("#usage")).to_contain_text("told to whoever has a key")
    expect(page.locator("#usage-cards")).to_be_hidden()
    page.get_by_role("tab", name="Code").click()
    field.fill(visit.house.key())
    page.keyboard.press("Enter")
    expect(message).to_be_hidden()
    expect(ghost(page)).not_to_be_empty()
    page.reload()
    expect(ghost(page)).not_to_be_empty()  # it was kept
    page.locator("#key-button").click()
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("localStorage['narrows.key']") is None
    visit.check(401)


def test_a_key_in_the_address_is_taken_out_of_it(visit: Visit) -> None:
    page = visit.open(visit.house.key())
    assert page.url == f"{visit.house.server.url}/"
    expect(page.locator("#key-form")).to_be_hidden()
    page.reload()
    expect(ghost(page)).not_to_be_empty()
    visit.check()


def test_a_key_that_is_no_longer_known_is_not_kept(visit: Visit) -> None:
    visit.page.add_init_script("localStorage['narrows.key'] ??= 'nrw_revoked'")
    page = visit.open()
    expect(page.locator("#key-message")).to_contain_text("not known here")
    expect(page.get_by_label("Key", exact=True)).to_have_value("nrw_revoked")
    assert page.evaluate("localStorage['narrows.key']") is None
    expect(page.get_by_role("button", name="Complete", exact=True)).to_be_disabled()
    visit.check(401)


def test_where_no_model_chats_there_is_no_such_tab(visit: Visit) -> None:
    def without(route: Route) -> None:
        told = route.fetch().json()
        route.fulfill(json={**told, "data": [{**one, "chat": False} for one in told["data"]]})

    visit.page.route("**/v1/models", without)
    page = visit.open(visit.house.key())
    expect(page.get_by_role("tab")).to_have_text(["Code", "Usage", "Plan"])
    visit.check()


def test_light_and_dark_are_the_systems_until_somebody_chooses(browser: Browser, page_house: House) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(page_house.server.url)
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(root).to_have_attribute("data-theme", "light")
    page.get_by_role("button", name="Change to the dark theme").click()
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 22)"
    context.close()


def test_all_of_it_can_be_used_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.open(visit.house.key())
    expect(ghost(page)).not_to_be_empty()
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => {
              const is = document.activeElement, style = getComputedStyle(is);
              const editor = is.closest(".editor") && getComputedStyle(is.closest(".editor")).boxShadow !== "none";
              const box = is.getBoundingClientRect();
              const name = is.id || is.className || is.localName;
              return [name, editor || style.outlineStyle !== "none", box.width > 0 && box.left >= 0];
            }"""
        )
        if focused[0] == "body":  # behind the last of them
            break
        assert focused[1] and focused[2], focused
        seen.append(focused[0])
        if focused[0] == "editor":
            page.keyboard.press("Escape")
    for wanted in (
        "skip",
        "tab-code",
        "key-button",
        "theme",
        "code-model",
        "code-complete",
        "editor",
        "context-folder",
    ):
        assert wanted in seen
    page.locator("#tab-code").focus()
    order = ("Chat", "Usage", "Plan", "Code")
    for key, tab in (*(("ArrowRight", tab) for tab in order), ("ArrowLeft", "Plan")):
        page.keyboard.press(key)
        expect(page.get_by_role("tab", name=tab)).to_be_focused()
        expect(page.get_by_role("tabpanel", name=tab)).to_be_visible()
    expect(page.get_by_role("tabpanel")).to_have_count(1)
    visit.check()


# Everything that a reader can see: names of controls, contrast of texts, ids, and what stands out of the window.
AUDIT = """() => {
  const faults = [];
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (is) => {
    for (; is; is = is.parentElement) {
      const colour = channels(getComputedStyle(is).backgroundColor);
      if ((colour[3] ?? 1) === 1) return colour;
    }
  };
  const visible = (is) => is.checkVisibility({ visibilityProperty: true }) && !is.closest(".unseen, .skip");
  for (const is of document.querySelectorAll("button, input, select, textarea, a, aside, [role=region]")) {
    if (!visible(is)) continue;
    const by = is.getAttribute("aria-labelledby");
    const name = is.getAttribute("aria-label") ?? (by && document.getElementById(by)?.textContent) ??
      (is.labels?.length ? is.labels[0].textContent : is.textContent);
    if (!name.trim()) faults.push(`no name: ${is.outerHTML.slice(0, 80)}`);
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const is = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !visible(is) || is.closest("svg, textarea, option, :disabled")) continue;
    const [one, other] = [light(channels(getComputedStyle(is).color)), light(behind(is))].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)}: ${walker.currentNode.data.slice(0, 40)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((is) => is.id);
  for (const id of new Set(ids)) if (ids.filter((one) => one === id).length > 1) faults.push(`id twice: ${id}`);
  for (const is of document.querySelectorAll("[aria-labelledby], [aria-describedby], [aria-controls]")) {
    for (const name of ["labelledby", "describedby", "controls"]) {
      for (const id of (is.getAttribute(`aria-${name}`) ?? "").split(" ").filter(Boolean)) {
        if (!document.getElementById(id)) faults.push(`nothing is ${id}`);
      }
    }
  }
  for (const one of ["header", "main", "h1", "[role=tablist]"]) {
    if (document.querySelectorAll(one).length !== 1) faults.push(`not one ${one}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) faults.push(`wider than ${innerWidth}`);
  return faults;
}"""


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_everybody_can_read_it(browser: Browser, page_house: House, theme: Any, width: int) -> None:
    context = browser.new_context(color_scheme=theme, reduced_motion="reduce", viewport={"width": width, "height": 740})
    visit = Visit(page_house, context)
    page = visit.open()
    assert page.evaluate(AUDIT) == []
    page = visit.open(page_house.key("reader", scopes=["inference", "admin"], budget=10**12))
    page.reload()
    expect(page.locator("#code-figures .costs").first).to_be_visible()
    page.set_input_files("#context-files-input", [Path(__file__), Path(__file__).with_name("conftest.py")])
    expect(page.locator("#context-list li")).to_have_count(2)
    page.locator("#code-notice").evaluate("is => is.textContent = 'Something is wrong.'")
    assert page.evaluate(AUDIT) == []
    page.get_by_role("tab", name="Chat").click()
    page_house.script.replies = [reply("So.</think>", "Look:\n```\n" + "long " * 20 + "\n```\n" + "x" * 80)]
    page.get_by_label("Message").fill("y" * 300)
    page.keyboard.press("Enter")
    expect(page.locator("#chat-messages pre")).to_be_visible()
    expect(page.locator("#chat-stop")).to_be_hidden()
    assert page.evaluate(AUDIT) == []
    page.get_by_role("tab", name="Usage").click()
    expect(page.locator("#usage-requests tbody tr").first).to_be_visible()
    assert page.evaluate(AUDIT) == []
    visit.check()
    context.close()
