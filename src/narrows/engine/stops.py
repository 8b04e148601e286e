"""Text up to the first stop string, of which nothing is ever shown, while it comes in pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class StopStrings:
    """Passes text on until a stop string is complete: the first that is, and of those that are at once the longest.

    What may still become a stop string is held back, and nothing else. Time is linear in the text, however it is cut
    into pieces and however many stop strings there are: the automaton of Aho and Corasick (1975) reads every character
    once.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        """For stop strings that are not empty."""
        self.matched: str | None = None
        self._node = self._root = _automaton(stop)  # what it has read is what is held back

    @property
    def finished(self) -> bool:
        """Whether a stop string came, which is `matched`: no more text will be shown."""
        return self.matched is not None

    def push(self, piece: str) -> str:
        """More text -> what of it, and of what was held back, may be shown now."""
        if self.finished:
            return ""
        before = self._node
        for read, character in enumerate(piece, start=1):
            self._node = self._node.after(character)
            if self._node.ends is not None:
                self.matched = self._node.ends
                return _first(before.depth + read - len(self.matched), before, piece)
        return _first(before.depth + len(piece) - self._node.depth, before, piece)

    def finish(self) -> str:
        """The text is over -> what was held back."""
        held = "" if self.finished else _first(self._node.depth, self._node, "")
        self._node = self._root
        return held


class _Node:
    """The longest end of the text so far with which a stop string begins: the first `depth` characters of `begins`.

    `ends`: the longest stop string that the text ends in. `shorter`: the node of the next longest such end.
    """

    __slots__ = ("begins", "depth", "ends", "following", "shorter")

    def __init__(self, depth: int, begins: str, shorter: _Node | None) -> None:
        self.depth, self.begins, self.shorter = depth, begins, shorter
        self.ends: str | None = None
        self.following: dict[str, _Node] = {}

    def after(self, character: str) -> _Node:
        node: _Node = self
        while character not in node.following:
            if node.shorter is None:
                return node
            node = node.shorter
        return node.following[character]


def _first(count: int, held: _Node, piece: str) -> str:
    """The first characters of what was held back and a piece behind it; without a copy of what stays held back."""
    return held.begins[: min(count, held.depth)] + piece[: max(0, count - held.depth)]


def _automaton(stop: Iterable[str]) -> _Node:
    """The root: nothing that a stop string begins with has been read."""
    root = _Node(0, "", None)
    for string in stop:
        node = root
        for character in string:
            node = node.following.setdefault(character, _Node(node.depth + 1, string, root))
        node.ends = string
    # Breadth first, so that a node's shorter one is finished before it.
    waiting = deque(root.following.values())
    while waiting:
        node = waiting.popleft()
        assert node.shorter is not None
        node.ends = node.ends or node.shorter.ends
        for character, longer in node.following.items():
            longer.shorter = node.shorter.after(character)
            waiting.append(longer)
    return root
