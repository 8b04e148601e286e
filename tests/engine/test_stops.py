"""StopStrings: the text before the first stop string, whatever the pieces; nothing of a stop string is ever shown."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from narrows.engine.stops import StopStrings

# Few characters, so that stop strings overlap each other, themselves and the text.
texts = st.text("ab\u00e9", max_size=30)
stops = st.lists(st.text("ab\u00e9", min_size=1, max_size=6), max_size=5).map(tuple)


def naive(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """What may be shown of a whole text, and the stop string that ended it."""
    for end in range(1, len(text) + 1):
        if matching := [one for one in stop if text[:end].endswith(one)]:
            longest = max(matching, key=len)
            return text[: end - len(longest)], longest
    return text, None


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


@given(texts, stops, st.lists(st.integers(0, 40), max_size=12))
@example("aaab", ("aab",), [1, 2, 3])
@example("abab", ("abb", "ba"), [1, 2, 3])
@example("abb", ("abb", "b", "bb"), [1])
def test_any_pieces_show_what_the_whole_text_shows(text: str, stop: tuple[str, ...], cuts: list[int]) -> None:
    stream = StopStrings(stop)
    shown, read = "", ""
    for piece in pieces_of(text, cuts):
        shown += stream.push(piece)
        read += piece
        if not stream.finished:
            # All is shown but the longest end that may still become a stop string.
            held = read[len(shown) :]
            begun = [read[place:] for place in range(len(read)) if any(one.startswith(read[place:]) for one in stop)]
            assert held == max(begun, key=len, default="")
            assert shown + held == read
    shown += stream.finish()
    assert (shown, stream.matched) == naive(text, stop)
    assert stream.finished == (stream.matched is not None)


@given(texts, stops, texts)
def test_nothing_comes_behind_the_end(text: str, stop: tuple[str, ...], more: str) -> None:
    stream = StopStrings(stop)
    stream.push(text)
    if stream.finished:
        assert (stream.push(more), stream.finish()) == ("", "")
        assert stream.matched == naive(text, stop)[1]


@pytest.mark.parametrize("stop", [("a" * 1999 + "b",), tuple("a" * length + "b" for length in range(1, 400))])
def test_time_is_linear_where_every_character_begins_a_stop_string(stop: tuple[str, ...]) -> None:
    def seconds(length: int) -> float:
        stream, start = StopStrings(stop), time.process_time()
        for _ in range(length):
            stream.push("a")
        stream.finish()
        return time.process_time() - start

    seconds(2_000)
    short, long = (min(seconds(length) for _ in range(3)) for length in (20_000, 100_000))
    assert long < 20 * short
