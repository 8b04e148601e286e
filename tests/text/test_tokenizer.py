"""The tokenizer: exact for every text, deaf to control tokens inside it, and clear about files it cannot use."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import narrows
from narrows.errors import NarrowsError
from narrows.model.presets import TINY
from narrows.text.fim import fim_prompt
from narrows.text.tokenizer import (
    BOS,
    CONTROL_TOKENS,
    EOS,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    USER,
    Detokenizer,
    Tokenizer,
)

EMBEDDED = Path(narrows.__file__).parent / "embedded"
TOKENIZER = Tokenizer.from_directory(EMBEDDED)

# Texts with control tokens, whole and broken, among everything else.
texts = st.lists(
    st.one_of(st.text(), st.sampled_from(CONTROL_TOKENS), st.sampled_from(["\n    ", "\r\n", "｜", "é"]))
).map("".join)
ids = st.lists(st.integers(0, TOKENIZER.vocab_size + 5))


def definition() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EMBEDDED / "tokenizer.json").read_text("utf-8"))
    return loaded


@given(texts)
@example("def f(x):\n\n        return '😀 naïve'\t\x00\r\n")
def test_every_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(texts)
def test_text_never_becomes_a_control_token(text: str) -> None:
    controls = {TOKENIZER.control(content) for content in CONTROL_TOKENS}
    assert controls.isdisjoint(TOKENIZER.encode(text))


@given(ids)
def test_the_pieces_of_a_stream_are_the_text_of_the_whole(stream: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(token) for token in stream]
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == TOKENIZER.decode(stream)


@given(texts)
def test_a_stream_of_real_text_never_shows_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    shown = ""
    for token in TOKENIZER.encode(text):
        shown += detokenizer.push(token)
        assert text.startswith(shown)
    assert detokenizer.finish() == ""
    assert shown == text


def test_the_embedded_tokenizer_agrees_with_the_library_it_was_written_by() -> None:
    """Our own table of bytes decodes as the library's decoder does."""
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    text = 'class A:\n    def méthode(self, x="→"):\n        return x[::-1]\n'
    encoded = TOKENIZER.encode(text)
    assert encoded == library.encode(text, add_special_tokens=False).ids
    assert library.decode(encoded, skip_special_tokens=False) == TOKENIZER.decode(encoded)


def test_control_tokens_have_the_official_strings_and_decode_to_them() -> None:
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id) == (0, 1)
    assert TOKENIZER.decode([TOKENIZER.control(USER), TOKENIZER.eos_id]) == USER + EOS


def test_control_tokens_that_the_library_does_not_call_special_are_spelled_out_as_well() -> None:
    raw = definition()
    for token in raw["added_tokens"]:
        token["special"] = False
    assert Tokenizer(raw).encode(BOS + USER) == TOKENIZER.encode(BOS + USER)


@given(st.text(), st.text())
def test_a_fim_prompt_holds_prefix_and_suffix_between_its_control_tokens(prefix: str, suffix: str) -> None:
    prompt = fim_prompt(TOKENIZER, prefix, suffix)
    assert TOKENIZER.decode(prompt) == f"{BOS}{FIM_BEGIN}{prefix}{FIM_HOLE}{suffix}{FIM_END}"
    assert prompt[:2] == [TOKENIZER.bos_id, TOKENIZER.control(FIM_BEGIN)]
    assert prompt[-1] == TOKENIZER.control(FIM_END)


@given(st.text(), st.text(), ids)
def test_suffix_first_a_prompt_ends_in_its_prefix(prefix: str, suffix: str, context: list[int]) -> None:
    """It is the other layout's prompt for an empty prefix, and the middle that follows is begun with the real one."""
    prompt = fim_prompt(TOKENIZER, prefix, suffix, context, "spm")
    assert prompt == [*fim_prompt(TOKENIZER, "", suffix, context), *TOKENIZER.encode(prefix)]
    assert TOKENIZER.decode(fim_prompt(TOKENIZER, prefix, suffix, layout="spm")) == (
        f"{BOS}{FIM_BEGIN}{FIM_HOLE}{suffix}{FIM_END}{prefix}"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NarrowsError, match=r"tokenizer\.json does not exist; put the model's tokenizer\.json there\.$"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b'{"model": {"type": "BPE"', "is not valid JSON"),
        (b"[1, 2]", "does not hold a JSON object"),
        (b"{}", "is not a tokenizer definition"),
        (b'{"added_tokens": [{"id": "x"}]}', "is not a tokenizer definition"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(NarrowsError, match=rf"tokenizer\.json {complaint}"):
        Tokenizer.from_directory(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(NarrowsError, match=r"mine\.json is not a byte-level tokenizer"):
        Tokenizer({**definition(), "decoder": {"type": "Fuse"}}, "mine.json")


def test_a_tokenizer_without_a_control_token_says_which() -> None:
    raw = definition()
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != FIM_HOLE]
    tokenizer = Tokenizer(raw, "mine.json")
    with pytest.raises(NarrowsError, match=r"mine\.json has no token '<｜fim▁hole｜>'"):
        fim_prompt(tokenizer, "a", "b")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused() -> None:
    exact = TINY.model_copy(update={"vocab_size": TOKENIZER.vocab_size})
    TOKENIZER.check_fits(exact, "there/config.json")
    smaller = TINY.model_copy(update={"vocab_size": TOKENIZER.vocab_size - 1})
    with pytest.raises(NarrowsError, match=r"has 4096 tokens but there/config\.json has vocab_size 4095;"):
        TOKENIZER.check_fits(smaller, "there/config.json")


def test_a_tokenizer_that_begins_and_ends_texts_otherwise_is_refused() -> None:
    config = TINY.model_copy(update={"vocab_size": TOKENIZER.vocab_size, "eos_token_id": 7})
    with pytest.raises(NarrowsError, match=r"has the eos_token_id 1 but there/config\.json says 7;"):
        TOKENIZER.check_fits(config, "there/config.json")


@pytest.mark.parametrize("token_id", [-5, True, 1.5, "7", None])
def test_ids_that_are_none_are_refused(token_id: object) -> None:
    raw = definition()
    raw["added_tokens"] = [*raw["added_tokens"], {**raw["added_tokens"][0], "content": "<new>", "id": token_id}]
    with pytest.raises(NarrowsError, match=r"mine\.json is not a tokenizer definition \(the id of '<new>' is"):
        Tokenizer(raw, "mine.json")


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(NarrowsError, match="lone surrogate at character 2"):
        TOKENIZER.encode("ab\ud800")
