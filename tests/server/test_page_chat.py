"""The Chat tab in a real browser."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from narrows.economics.money import shown
from tests.server.browsing import Visit
from tests.server.scripted import reply, wait_for
from tests.text.conversations import EMBEDDED


def test_a_chat_streams_its_reasoning_and_its_answer(visit: Visit) -> None:
    script = visit.house.script
    page = visit.open(visit.house.key("talker"))
    page.get_by_role("tab", name="Chat").click()
    script.replies = [reply("Let me think.</think>", "Look:\n```python\n<b>x</b> = 1\n```\nThat <i>is</i> all.")]
    script.pause = 0.03
    expect(page.locator("#chat-model option")).to_have_text(["scripted"])
    page.locator("#chat-effort").select_option("max")
    page.get_by_label("Message").fill("Go on.")
    page.keyboard.press("Enter")
    expect(page.locator("details", has_text="Let me")).to_have_attribute("open", "")
    answer = page.locator("#chat-messages .assistant")
    expect(answer.locator("pre")).to_have_text("<b>x</b> = 1")
    expect(answer.locator("p").last).to_have_text("That <i>is</i> all.")
    expect(page.locator("#chat-messages details")).not_to_have_attribute("open", "")
    expect(page.locator("#chat-live")).to_contain_text("Answer: Look:")
    row = visit.house.ledger.requests(limit=1)[0]
    expect(page.locator("#chat-figures .here .number").first).to_have_text(shown(row.cost))
    script.replies, script.pause = [reply("</think>", "Yes.")], 0.0
    page.keyboard.type("Sure?")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-messages .assistant").last).to_contain_text("Yes.")
    prompt = EMBEDDED.decode(script.jobs[-1].prompt)
    assert "Go on." in prompt and "That <i>is</i> all." in prompt and "Sure?" in prompt
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#chat-messages li")).to_have_count(0)
    visit.check()


def test_a_chat_can_be_stopped(visit: Visit) -> None:
    script = visit.house.script
    page = visit.open(visit.house.key("stopper"))
    page.get_by_role("tab", name="Chat").click()
    script.replies, script.pause, script.steps = [reply("</think>", "endless " * 300)], 0.6, 4
    page.get_by_label("Message").fill("Go on.")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-status")).to_have_text(re.compile(r"Reading \d+ of \d+ tokens"))
    expect(page.get_by_role("progressbar", name="Prompt that is read")).to_be_visible()
    script.pause = 0.03
    expect(page.locator("#chat-messages .content")).to_contain_text("endless endless")
    script.ended.clear()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#chat-messages .assistant")).to_contain_text("Stopped.")
    wait_for(script.ended.is_set, 10)
    wait_for(lambda: visit.house.ledger.requests(limit=1)[0].outcome == "cut", 10)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    visit.check()
