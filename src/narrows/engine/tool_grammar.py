"""The grammar of replies that call tools: the markup of text/markup.py, around arguments that satisfy the schemas.

    reply := content [calls]            or, where calls are required, "\\n\\n" calls
                                        or, where content is JSON,    JSON | "\\n\\n" calls

Calls stand as text/chat.py writes them. Parameters come in the order of the schema's properties, as in JSON from
llguidance, each at most once; where properties are listed, others only if additionalProperties says so.

Strings that may be anything, or one of a list, are written as they are with string="true"; other values as JSON. So are
strings that a pattern, a length or a format limits: only in JSON does llguidance know these limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from narrows.engine.lark import ANYTHING, check_schema, json_rule, literal
from narrows.errors import UsageError
from narrows.text.markup import can_be_written
from narrows.text.messages import Tool

_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_LIMITS_OF_STRINGS = {"enum", "const", "minLength", "maxLength", "pattern", "format"}
_COMBINED = {"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "$dynamicRef"}
# What a schema of arguments must not say beside its properties: it could forbid what the rules below let pass.
_BEYOND_PROPERTIES = {
    *_COMBINED,
    *("enum", "const", "patternProperties", "propertyNames", "minProperties", "maxProperties"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"),
}
_OTHER_TYPES = ["object", "array", "number", "boolean", "null"]


def tool_calls(
    tools: Sequence[Tool],
    dsml_id: int,
    *,
    required: bool = False,
    parallel: bool = True,
    content: Mapping[str, Any] | None = None,
) -> str:
    """Lark text for replies that call some of `tools`; `dsml_id` is the token ｜DSML｜.

    `required`: the reply is calls and nothing else; otherwise content may come first, and calls may be left out.
    `parallel`: it may hold several calls. `content`: the JSON schema of a reply that calls nothing; one that does has
    then no other content. UsageError, naming the tool, for a schema that a grammar cannot keep to.
    """
    if not tools:
        raise UsageError("there is no tool that could be called; give at least one.")
    only_calls = '"\\n\\n<" calls'
    free = "CONTENT | CONTENT_BEFORE calls" if content is None else f"json_content | {only_calls}"
    rules = [
        f"start: {only_calls if required else free}",
        f"CONTENT: {ANYTHING}",
        'CONTENT_BEFORE: CONTENT "<"',  # the line breaks before a block are the model's habit, not our law
        f"VALUE: {ANYTHING}",
        'VALUE_BEFORE: VALUE "</"',
        f"dsml: <[{dsml_id}]>",
        f'calls: dsml "tool_calls>" invoke{"+" if parallel else ""} "\\n</" dsml "tool_calls>"',
        f"invoke: {' | '.join(f'invoke_{number}' for number in range(len(tools)))}",
    ]
    if content is not None:
        rules.append(f"json_content: {json_rule(content, 'the JSON schema')}")
    for number, tool in enumerate(tools):
        rules += _invoke(tool, number)
    return "\n".join(rules)


def _invoke(tool: Tool, number: int) -> Iterable[str]:
    """The rules of one tool's call: `rest_N_P` is what may follow before parameter P, `some_N_P` if none came yet."""
    schema = _Arguments.read(tool)
    beginning = literal(f'invoke name="{tool.name}">')
    yield f'invoke_{number}: "\\n<" dsml {beginning} some_{number}_0 "\\n</" dsml "invoke>"'
    names = [*schema.values]
    for place, name in enumerate(names):
        here, after = f"{number}_{place}", f"{number}_{place + 1}"
        tag, owner = literal(f'parameter name="{name}" string="'), f"the parameter {name!r} of tool {tool.name!r}"
        yield from _parameter(here, tag, schema.values[name], schema, owner)
        optional = name not in schema.required
        yield f"some_{here}: parameter_{here} rest_{after}" + (f" | some_{after}" if optional else "")
        yield f"rest_{here}: parameter_{here}{'?' if optional else ''} rest_{after}"
    last = f"{number}_{len(names)}"
    if schema.others is None:
        yield f'some_{last}: "\\n"'  # as a call without arguments is written
        yield f'rest_{last}: ""'
        return
    listed = f" & ~({' | '.join(map(literal, names))})" if names else ""
    yield f'NAME_{last}: "parameter name=\\"" (/[^"<>\\x00-\\x1f\\x7f]{{1,256}}/{listed}) "\\" string=\\""'
    yield from _parameter(last, f"NAME_{last}", schema.others, schema, f"additionalProperties of tool {tool.name!r}")
    yield f'some_{last}: parameter_{last}+ | "\\n"'
    yield f"rest_{last}: parameter_{last}*"


def _parameter(here: str, tag: str, schema: Any, arguments: _Arguments, owner: str) -> Iterable[str]:
    """The rules of one parameter, whose tag begins with the terminal `tag`."""
    forms = _Forms()
    forms.add(schema, arguments.definitions, frozenset())
    ways = []
    if forms.any_string:
        ways.append('"true\\">" VALUE_BEFORE')
    elif forms.strings:
        yield f'STRING_{here}: ({" | ".join(map(literal, forms.strings))}) "</"'
        ways.append(f'"true\\">" STRING_{here}')
    if forms.json:
        whole = {"anyOf": forms.json, **arguments.carried}
        check_schema(whole, owner)
        yield f"json_{here}: {json_rule(whole, owner)}"
        ways.append(f'"false\\">" json_{here} "</"')
    yield f'parameter_{here}: "\\n<" dsml {tag} ({" | ".join(ways)}) dsml "parameter>"'


@dataclass(frozen=True)
class _Arguments:
    """The schema of a tool's arguments. `values`: schemas by name, in the order of writing; `others`: of further
    parameters, None where there are none; `carried`: the definitions that they refer to, as JSON Schema keeps them."""

    values: Mapping[str, Any]
    required: frozenset[str]
    others: Any | None
    carried: Mapping[str, Any]
    definitions: Mapping[str, Any]

    @classmethod
    def read(cls, tool: Tool) -> _Arguments:
        given = tool.parameters
        if beyond := sorted(_BEYOND_PROPERTIES & given.keys()):
            raise UsageError(
                f"the parameters of tool {tool.name!r} are limited by {beyond[0]!r}, which a grammar of calls cannot "
                "keep to; describe them by properties and required."
            )
        if given.get("type", "object") != "object":
            raise UsageError(f"the parameters of tool {tool.name!r} have the type {given['type']!r}; use 'object'.")
        required = given.get("required", [])
        if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in required):
            raise UsageError(f"required, in the schema of tool {tool.name!r}, is {required!r}; give a list of names.")
        for name in required:
            if not can_be_written(name):
                raise UsageError(f"the parameter name {name!r} of tool {tool.name!r} cannot be written; rename it.")
        additional = given.get("additionalProperties", not tool.properties)
        others = None if additional is False else additional
        unlisted = {name: True if others is None else others for name in required if name not in tool.properties}
        carried = {key: given[key] for key in ("$defs", "definitions") if isinstance(given.get(key), Mapping)}
        definitions = {f"#/{key}/{name}": value for key, named in carried.items() for name, value in named.items()}
        return cls({**tool.properties, **unlisted}, frozenset(required), others, carried, definitions)


@dataclass
class _Forms:
    """How the values of a schema are written: any string or these strings as they are, the rest as JSON of `json`."""

    any_string: bool = False
    strings: list[str] = field(default_factory=list)
    json: list[Any] = field(default_factory=list)

    def add(self, schema: Any, definitions: Mapping[str, Any], within: frozenset[str]) -> None:
        """Add what `schema` allows, which stands in the definitions `within`."""
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            self.json.append(schema)
            return
        said = {keyword: value for keyword, value in schema.items() if keyword not in _NOTES}
        reference, either, kind = said.get("$ref"), said.get("anyOf"), said.get("type")
        if said.keys() == {"$ref"} and reference in definitions.keys() - within:
            self.add(definitions[reference], definitions, within | {reference})
        elif said.keys() == {"anyOf"} and isinstance(either, list):
            for one in either:
                self.add(one, definitions, within)
        elif said.keys() - {"type"} in ({"enum"}, {"const"}) and kind in (None, "string"):
            self._add_listed(said)
        elif said.keys() & (_LIMITS_OF_STRINGS | _COMBINED):
            self.json.append(schema)
        else:
            kinds = ["string", *_OTHER_TYPES] if kind is None else kind if isinstance(kind, list) else [kind]
            self.any_string |= "string" in kinds
            if others := [one for one in kinds if one != "string"]:
                self.json.append({**schema, "type": others})

    def _add_listed(self, said: Mapping[str, Any]) -> None:
        values = said["enum"] if "enum" in said else [said["const"]]
        strings = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
        self.strings += strings
        if not strings:
            self.json.append(said)
        elif "type" not in said and len(strings) < len(values):
            self.json.append({"enum": [value for value in values if not isinstance(value, str)]})
