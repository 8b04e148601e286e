"""Grammars: whatever is drawn under their masks is what was asked for, and what was asked for can be drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.engine.grammar import Grammar, GrammarState, Vocabulary
from narrows.errors import NarrowsError, UsageError
from narrows.text.chat import encode_conversation
from narrows.text.messages import AssistantMessage, Conversation, Tool, UserMessage
from narrows.text.parse import ReplyParser
from narrows.text.reply_events import Reply, collect
from narrows.text.tokenizer import DSML, END_OF_THINKING, Tokenizer
from tests.draws import scaled
from tests.text.conversations import EMBEDDED, OFFICIAL, calls, names, texts, without

# The model's logits may be more than the tokenizer's tokens.
VOCABULARY = Vocabulary(EMBEDDED, EMBEDDED.vocab_size + 5)
EOS, DSML_ID, THOUGHT = EMBEDDED.eos_id, EMBEDDED.control(DSML), EMBEDDED.control(END_OF_THINKING)
NUMBERS = {"type": "array", "items": {"type": "integer"}}
LONGEST = 600

randoms = st.integers(0, 2**32).map(Random)


def walk(state: GrammarState, random: Random, tokenizer: Tokenizer = EMBEDDED) -> list[int] | None:
    """Tokens drawn under the masks until the reply may end, mostly such as lead there; None if it takes too long."""
    tokens: list[int] = []
    while len(tokens) < LONGEST:
        mask = state.mask()
        assert bool(mask[tokenizer.eos_id]) == state.may_end
        assert not mask[tokenizer.vocab_size :].any()
        allowed = mask.nonzero().flatten().tolist()
        assert allowed
        if state.may_end and (len(allowed) == 1 or len(tokens) > 20 or random.random() < 0.1):
            return tokens
        allowed = [token for token in allowed if token != tokenizer.eos_id]
        closing = [token for token in allowed if tokenizer.bytes_of(token) in CLOSING]
        tokens.append(random.choice(closing if closing and random.random() < 0.7 else allowed))
        state.advance(tokens[-1])
    return None


CLOSING = {one.encode() for one in ('"', "}", "]", ",", ":", "<", "</", "/", "\n</", "0", "1", DSML, "invoke", "tool")}


def follows(grammar: Grammar, tokens: Iterable[int]) -> bool:
    """Whether the tokens may come, and be all."""
    state = GrammarState(grammar)
    for token in tokens:
        if not state.mask()[token]:
            return False
        state.advance(token)
    return state.may_end


# -- JSON ---------------------------------------------------------------------------------------------------------

plain = st.sampled_from(["a", "b c", "ü", "\u65e5", 'q"', "\\", "1", "", "\n"])
constants = st.none() | st.booleans() | st.integers(-5, 5) | plain
leaves = st.one_of(
    st.sampled_from([{"type": "string"}, {"type": "boolean"}, {"type": "null"}, {"type": "number"}, {}]),
    st.integers(-40, 20).map(lambda low: {"type": "integer", "minimum": low, "maximum": low + 30}),
    st.integers(0, 4).map(lambda length: {"type": "string", "minLength": length, "maxLength": length + 2}),
    st.sampled_from([{"type": "string", "pattern": "^[a-c]{1,3}$"}, {"type": ["string", "null"]}]),
    st.lists(constants, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    constants.map(lambda value: {"const": value, "description": "nothing else"}),
)


def objects(schemas: st.SearchStrategy[Any], keys: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    def finish(drawn: tuple[dict[str, Any], Random, Any]) -> dict[str, Any]:
        properties, random, others = drawn
        required = [name for name in properties if random.random() < 0.5]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": others}

    others = st.just(False) | schemas
    return st.tuples(st.dictionaries(keys, schemas, max_size=3), randoms, others).map(finish)


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several}),
        objects(inner, plain),
    ),
    max_leaves=4,
)


def satisfies(value: Any, schema: Any) -> bool:
    """JSON Schema, as far as it is drawn above."""
    if "anyOf" in schema:
        return any(satisfies(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(value == one and type(value) is type(one) for one in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", ["object", "array", "string", "number", "boolean", "null"])
    return any(_is(value, kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _is(value: Any, kind: str, schema: Any) -> bool:
    match kind:
        case "string":
            fits = re.search(schema.get("pattern", ""), value) if isinstance(value, str) else None
            return fits is not None and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        case "integer":
            return type(value) is int and schema.get("minimum", value) <= value <= schema.get("maximum", value)
        case "number":
            return type(value) in (int, float)
        case "boolean" | "null":
            return type(value) is (bool if kind == "boolean" else type(None))
        case "array":
            items = schema.get("items", {})
            fits = isinstance(value, list) and len(value) <= schema.get("maxItems", len(value))
            return fits and all(satisfies(one, items) for one in value)
        case _:
            properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
            return isinstance(value, dict) and all(
                [
                    *(name in value for name in schema.get("required", [])),
                    *(
                        satisfies(inner, properties[name]) if name in properties else others is not False
                        for name, inner in value.items()
                    ),
                    *(satisfies(inner, others) for name, inner in value.items() if name not in properties),
                ]
            )


@given(schemas, randoms)
def test_what_is_drawn_satisfies_the_schema(schema: dict[str, Any], random: Random) -> None:
    tokens = walk(GrammarState(Grammar.json_schema(VOCABULARY, schema)), random)
    if tokens is not None:
        assert satisfies(json.loads(EMBEDDED.decode(tokens)), schema)


@pytest.mark.parametrize("indent", [None, 2, 8])
def test_json_may_be_written_with_room_and_not_with_room_without_end(indent: int | None) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    grammar = Grammar.json_schema(VOCABULARY, schema)
    assert follows(grammar, EMBEDDED.encode(json.dumps({"a": [1, -20]}, indent=indent)))
    assert follows(grammar, EMBEDDED.encode('{"a":[]}'))
    for text in ("{" + 65 * " " + '"a": []}', '{"a": []} ', ' {"a": []}', '{"a": []', '{"a": [1.5]}'):
        assert not follows(grammar, EMBEDDED.encode(text))


def test_a_large_vocabulary_is_followed_alike() -> None:
    vocabulary = Vocabulary(OFFICIAL, OFFICIAL.vocab_size)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grammar = Grammar.json_schema(vocabulary, {**schema, "additionalProperties": False})
    for seed in range(5):
        tokens = walk(GrammarState(grammar), Random(seed), OFFICIAL)
        assert tokens is None or list(json.loads(OFFICIAL.decode(tokens))) == ["a"]


# -- regular expressions and Lark ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [r"[a-f]{3,8}", r"(yes|no)( maybe)?", r"\d+(\.\d+)?", "\u65e5*é+", r"a[^\n]*z", ""])
@given(random=randoms)
@settings(max_examples=scaled(5))
def test_what_is_drawn_matches_the_expression(pattern: str, random: Random) -> None:
    tokens = walk(GrammarState(Grammar.regex(VOCABULARY, pattern)), random)
    assert tokens is None or re.fullmatch(pattern, EMBEDDED.decode(tokens))


@given(randoms)
@settings(max_examples=scaled(10))
def test_what_is_drawn_is_derived_by_the_grammar(random: Random) -> None:
    tokens = walk(GrammarState(Grammar.lark(VOCABULARY, 'start: "(" start ")" | /[01]/')), random)
    assert tokens is None or re.fullmatch(r"\(*[01]\)*", text := EMBEDDED.decode(tokens))
    assert tokens is None or text.count("(") == text.count(")")


def test_text_that_spells_a_control_token_does_not_become_one() -> None:
    state = GrammarState(Grammar.regex(VOCABULARY, r"(?s:.*)"))
    for token in EMBEDDED.encode(f"a{END_OF_THINKING}<"):
        state.advance(token)
        controls = [other for other in range(EMBEDDED.vocab_size) if EMBEDDED.is_control(other)]
        assert state.mask()[controls].nonzero().flatten().tolist() == [controls.index(EOS)]


# -- calls of tools -----------------------------------------------------------------------------------------------


def tools_of(properties: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[Tool]]:
    one = st.builds(Tool, names, st.just(""), properties)
    return st.lists(one, min_size=1, max_size=3, unique_by=lambda tool: tool.name)


def parsed(tokens: list[int], tools: list[Tool]) -> Reply:
    parser = ReplyParser(EMBEDDED, tools=tools)
    return collect([*parser.feed([*tokens, EOS]), *parser.finish()])


def check_calls(reply: Reply, tools: list[Tool]) -> None:
    schemas = {tool.name: {"type": "object", **tool.parameters} for tool in tools}
    assert reply.stopped
    for call in reply.calls:
        assert call.complete
        assert satisfies(json.loads(call.arguments), schemas[call.name])


@given(tools_of(objects(schemas, names)), randoms, st.sampled_from(["", "So:\n\n", None]))
@settings(max_examples=scaled(30))
def test_calls_that_are_drawn_satisfy_the_schemas(tools: list[Tool], random: Random, content: str | None) -> None:
    """Where they are required (`content` None), where a block begins behind a content, and where it may not."""
    state = GrammarState(Grammar.tool_calls(VOCABULARY, tools, required=content is None))
    begun = [*EMBEDDED.encode(f"{content}<"), DSML_ID] if content else []
    for token in begun:
        state.advance(token)
    drawn = walk(state, random)
    if drawn is None:
        return
    tokens = begun + drawn
    reply = parsed(tokens, tools)
    check_calls(reply, tools)
    assert bool(reply.calls) == (DSML_ID in tokens)
    if content != "":
        assert reply.calls
        assert reply.content == (content or "").rstrip()
    if reply.calls:
        assert state.mask().nonzero().flatten().tolist() == [EOS]


@given(tools_of(objects(schemas, names)), randoms, st.booleans())
@settings(max_examples=scaled(20))
def test_a_reply_calls_once_or_is_json_where_that_is_asked_for(tools: list[Tool], random: Random, calls: bool) -> None:
    grammar = Grammar.tool_calls(VOCABULARY, tools, parallel=False, content=NUMBERS)
    state = GrammarState(grammar)
    begun = [*EMBEDDED.encode("\n\n<"), DSML_ID] if calls else EMBEDDED.encode("[")
    for token in begun:
        state.advance(token)
    drawn = walk(state, random)
    if drawn is None:
        return
    reply = parsed(begun + drawn, tools)
    check_calls(reply, tools)
    assert len(reply.calls) == calls
    assert reply.content == "" if calls else satisfies(json.loads(reply.content), NUMBERS)
    assert not follows(grammar, EMBEDDED.encode("So"))


anything = Tool("anything", "", {"type": "object"})
# llguidance writes DEL, alone of what JSON may hold as it is, as an escape.
without_del = texts.map(lambda text: text.replace("\x7f", ""))


@given(calls(without_del), st.text(max_size=9), st.booleans())
def test_calls_as_chat_writes_them_are_allowed(drawn: tuple[Any, ...], content: str, required: bool) -> None:
    tools = [Tool(name, "", {}) for name in {call.name for call in drawn}] or [anything]
    content = "" if required else content
    conversation = Conversation((UserMessage("x"), AssistantMessage(content, tool_calls=drawn)), effort="none")
    prompt = encode_conversation(EMBEDDED, conversation)
    *reply, eos = [prompt.token_ids[place] for place in prompt.own[-1]]
    assert eos == EOS
    assert follows(Grammar.tool_calls(VOCABULARY, tools, required=required), reply) == bool(drawn or not required)


def call(parameters: str, name: str = "f") -> list[int]:
    """The tokens of a reply that is one call; `parameters` in a shorthand, `a=true:text` for one."""
    text = f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="{name}">'
    for one in parameters.split(" ") if parameters else []:
        name, is_string, value = re.split("[=:]", one, maxsplit=2)
        text += f'\n<{DSML}parameter name="{name}" string="{is_string}">{value}</{DSML}parameter>'
    text += "" if parameters else "\n"
    text += f"\n</{DSML}invoke>\n</{DSML}tool_calls>"
    tokens: list[int] = []
    for piece in re.split(f"({DSML})", text):
        tokens += [DSML_ID] if piece == DSML else EMBEDDED.encode(piece)
    return tokens


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        ({"type": "string"}, ["true:x", "true:", 'true:"', "true:</"], ['false:"x"', "false:1"]),
        ({"type": "integer", "format": "int32"}, ["false:1"], ["true:1", "false:1.5", "false:"]),
        ({"enum": ["x", "y", 3]}, ["true:x", "true:y", "false:3"], ["true:", "true:xy", "true:3", 'false:"x"']),
        ({"type": "string", "enum": ["x", "y"], "title": "T"}, ["true:x"], ["true:z", 'false:"x"']),
        ({"const": "x"}, ["true:x"], ["true:y", "false:null"]),
        ({"const": 4}, ["false:4"], ["true:4", "false:5"]),
        ({"type": ["string", "null"]}, ["true:x", "false:null"], ['false:"x"', "false:0"]),
        ({"type": ["string", "integer"], "minimum": 3}, ["true:x", "false:3"], ["false:2"]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, ["true:x", "false:null"], ["false:1"]),
        ({"type": "string", "pattern": "^[ab]+$"}, ['false:"ab"'], ["true:ab", 'false:"c"']),
        ({"type": "string", "format": "date"}, ['false:"2024-02-29"'], ["true:2024-02-29", 'false:"now"']),
        ({"$ref": "#/$defs/Colour"}, ["true:red"], ["true:blue", 'false:"red"']),
        ({"$ref": "#/$defs/Tree"}, ["false:null", 'false:{"next":{"next":null}}'], ["false:1", "true:x"]),
        ({"type": "array", "items": {"$ref": "#/definitions/Old"}}, ["false:[1]"], ["false:[false]"]),
        (True, ["true:x", "false:[1]"], ['false:"x"', "false:x"]),
        ({}, ["true:x", "false:null"], ['false:"x"']),
    ],
)
def test_values_are_written_as_their_schema_says(schema: Any, allowed: list[str], refused: list[str]) -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Tree"}}, "additionalProperties": False}
    parameters = {
        "type": "object",
        "properties": {"a": schema},
        "required": ["a"],
        "$defs": {
            "Colour": {"type": "string", "enum": ["red", "green"]},
            "Tree": {"anyOf": [{"type": "null"}, tree]},
        },
        "definitions": {"Old": {"type": "integer"}},
    }
    grammar = Grammar.tool_calls(VOCABULARY, [Tool("f", "", parameters)], required=True)
    for values, expected in ((allowed, True), (refused, False)):
        assert [follows(grammar, call(f"a={value}")) for value in values] == [expected] * len(values)


@pytest.mark.parametrize(
    ("parameters", "allowed", "refused"),
    [
        ({}, ["", "a=true:x", "a=true:x b=false:1"], []),
        ({"additionalProperties": False}, [""], ["a=true:x"]),
        ({"properties": {"a": {}, "b": {}}}, ["", "a=true:x", "a=true:x b=true:y", "b=true:y"], ["c=true:x"]),
        ({"properties": {"a": {}, "b": {}}}, [], ["b=true:x a=true:x", "a=true:x a=true:x"]),
        ({"properties": {"a": {}, "b": {}}, "required": ["b"]}, ["b=true:x", "a=true:x b=true:x"], ["", "a=true:x"]),
        ({"properties": {"a": {}}, "title": "T", "$schema": "s", "x-own": 1}, ["a=true:x"], ["c=true:x"]),
        ({"properties": {"a": {}}, "required": ["z"]}, ["z=true:x", "a=true:x z=true:x"], ["a=true:x"]),
        (
            {"properties": {"a": {}}, "additionalProperties": {"type": "integer"}},
            ["", "a=true:x", "a=true:x c=false:1 ab=false:2", "c=false:1"],
            ["c=true:x", "c=false:1 a=true:x", "a=true:x a=false:1"],
        ),
    ],
)
def test_parameters_come_in_order_and_as_they_are_required(
    parameters: dict[str, Any], allowed: list[str], refused: list[str]
) -> None:
    grammar = Grammar.tool_calls(VOCABULARY, [Tool("f", "", parameters), Tool("g", "", {})], required=True)
    for written, expected in ((allowed, True), (refused, False)):
        assert [follows(grammar, call(one)) for one in written] == [expected] * len(written)
    assert not follows(grammar, call("", name="h"))


# -- the state ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, EMBEDDED.vocab_size - 1).filter(lambda one: one not in (EOS, THOUGHT))), randoms)
@settings(max_examples=scaled(20))
def test_reasoning_is_free_and_what_follows_is_not(thought: list[int], random: Random) -> None:
    state = GrammarState(Grammar.json_schema(VOCABULARY, NUMBERS), after=THOUGHT)
    for token in [*thought, THOUGHT]:
        mask = state.mask()
        assert (~mask).nonzero().flatten().tolist() == [EOS]
        assert not state.may_end
        state.advance(token)
    tokens = walk(state, random)
    assert tokens is None or satisfies(json.loads(EMBEDDED.decode(tokens)), NUMBERS)


def test_the_end_can_be_followed_too() -> None:
    state = GrammarState(Grammar.regex(VOCABULARY, "a"))
    (token,) = EMBEDDED.encode("a")
    state.advance(token)
    state.advance(EOS)
    assert state.may_end


@pytest.mark.parametrize(("after", "token"), [(None, 4), (None, EOS), (THOUGHT, EOS)])
def test_a_token_outside_the_mask_is_refused_and_changes_nothing(after: int | None, token: int) -> None:
    state = GrammarState(Grammar.regex(VOCABULARY, "a"), after=after)
    before = state.mask()
    assert not before[token]
    with pytest.raises(NarrowsError, match=f"the constraint does not allow token {token} here; draw it under the mask"):
        state.advance(token)
    assert torch.equal(state.mask(), before)


# -- what is refused ----------------------------------------------------------------------------------------------


def tool(**parameters: Any) -> list[Tool]:
    return [Tool("f", "", parameters)]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("json_schema", [1], "the JSON schema is [1]; give an object."),
        ("json_schema", {"type": "frob"}, "the JSON schema cannot constrain a reply (Invalid type: frob); change it"),
        ("json_schema", {"not": {}}, 'the JSON schema cannot constrain a reply (Unimplemented keys: ["not"]); change'),
        ("json_schema", {"const": float("nan")}, "the JSON schema cannot be written as JSON"),
        ("json_schema", {"const": "\ud800"}, "the JSON schema holds a lone surrogate, which no text can match; remove"),
        (
            "json_schema",
            {"type": "string", "pattern": "(?=a)"},
            "the JSON schema cannot constrain a reply (regex parse",
        ),
        ("regex", "[", "the regular expression cannot constrain a reply (at 1(8): invalid regex"),
        ("regex", "\ud800", "the regular expression holds a lone surrogate"),
        ("regex", r"[^\s\S]", "the regular expression allows no reply at all; loosen it."),
        ("lark", "start: a", 'the grammar cannot constrain a reply (at 1(8): unknown name: "a"); change it'),
        ("lark", "start: a\na: a", "the grammar allows no reply at all; loosen it."),
        ("tool_calls", [], "there is no tool that could be called; give at least one."),
        ("tool_calls", tool(anyOf=[]), "the parameters of tool 'f' are limited by 'anyOf', which a grammar"),
        ("tool_calls", tool(type="array"), "the parameters of tool 'f' have the type 'array'; use 'object'."),
        ("tool_calls", tool(required="a"), "required, in the schema of tool 'f', is 'a'; give a list of names."),
        ("tool_calls", tool(required=["<"]), "the parameter name '<' of tool 'f' cannot be written; rename it."),
        (
            "tool_calls",
            tool(properties={"a": {"type": "string", "format": "frob"}}),
            "the parameter 'a' of tool 'f' cannot constrain a reply (Unknown format: frob); change it",
        ),
        ("tool_calls", tool(properties={"a": {"enum": []}}), "the parameter 'a' of tool 'f' cannot constrain"),
        ("tool_calls", tool(properties={"a": {"type": "string", "enum": [1]}}), "the parameter 'a' of tool 'f' cannot"),
        ("tool_calls", tool(properties={"a": False}), "the parameter 'a' of tool 'f' cannot constrain a reply"),
        ("tool_calls", tool(properties={"a": {"enum": ["\ud800"]}}), "the grammar of the tools holds a lone surrogate"),
        ("tool_calls", tool(additionalProperties={"type": 3}), "additionalProperties of tool 'f' cannot constrain"),
    ],
)
def test_what_no_grammar_can_keep_to_is_refused_with_the_reason(kind: str, given: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        getattr(Grammar, kind)(VOCABULARY, given)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_calls_need_their_control_token() -> None:
    tokenizer = without(DSML)
    with pytest.raises(NarrowsError, match=f"has no token '{DSML}'"):
        Grammar.tool_calls(Vocabulary(tokenizer, tokenizer.vocab_size), [anything])


@pytest.mark.parametrize(
    ("lark", "reason"),
    [("start: x{1000}\nx: /a/ | /a/ /a/", "Too many items"), ('start: "a" e\ne: e "b"', "NoExtension")],
    ids=["too much", "a dead end"],
)
def test_what_cannot_be_followed_says_so_and_goes_on_saying_it(lark: str, reason: str) -> None:
    state = GrammarState(Grammar.lark(VOCABULARY, lark))
    (token,) = EMBEDDED.encode("a")

    def follow() -> None:
        state.advance(token)
        state.mask()

    for _ in range(2):
        with pytest.raises(NarrowsError, match=rf"cannot be followed any further \(.*{reason}.*\); simplify it"):
            follow()
