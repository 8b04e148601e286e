"""Layout: how a network lies on several chips."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from narrows.economics.chips import Chip
from narrows.economics.work import AnyConfig
from narrows.errors import UsageError
from narrows.model.config import ModelConfig

_NAMES = {"tp": "tensor", "dp": "data", "pp": "pipeline"}


@dataclass(frozen=True)
class Layout:
    """`pipeline` stages have layers of their own. In a stage, `tensor` chips share the heads of each attention and
    hold the same history, since all heads share one; `data` such groups have requests of their own; and the routed
    experts are spread over all chips of the stage.
    """

    tensor: int = 1
    data: int = 1
    pipeline: int = 1

    @property
    def stage(self) -> int:
        """Chips of a stage, over which experts are spread."""
        return self.tensor * self.data

    @property
    def chips(self) -> int:
        return self.stage * self.pipeline

    def __str__(self) -> str:
        return f"tp={self.tensor},dp={self.data},pp={self.pipeline}"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """tp=4,dp=2,pp=1: 1 where one is not named. UsageError."""
        found: dict[str, int] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*(tp|dp|pp)\s*=\s*([1-9][0-9]{0,5})\s*", part)
            if match is None or _NAMES[match[1]] in found:
                raise UsageError(
                    f"the layout is {text!r}; give tensor, data and pipeline parallelism such as tp=2,dp=4,pp=1."
                )
            found[_NAMES[match[1]]] = int(match[2])
        return cls(**found)

    def check(self, config: AnyConfig, chip: Chip, count: int) -> None:
        """UsageError, naming what does not divide what, unless the network can lie on so many such chips like this."""
        wrong = self.obstacle(config, chip, count)
        if wrong is not None:
            raise UsageError(f"the layout {self} cannot be: {wrong}.")

    def obstacle(self, config: AnyConfig, chip: Chip, count: int) -> str | None:
        """What is in the way of the network lying on so many such chips like this, if anything is."""
        if self.chips != count:
            return f"it has {self.tensor} × {self.data} × {self.pipeline} = {self.chips} chips, and there are {count}"
        heads = [("query heads", config.num_attention_heads)]
        if isinstance(config, ModelConfig):
            heads.append(("output groups", config.o_groups))
        for name, number in heads:
            if number % self.tensor:
                return f"tp={self.tensor} does not divide the {number} {name}"
        if chip.node % self.tensor:
            return f"tp={self.tensor} does not divide the {chip.node} chips of a node, and groups lie in one node"
        if config.n_routed_experts % self.stage:
            return f"the {self.stage} chips of a stage do not divide the {config.n_routed_experts} routed experts"
        if self.pipeline > config.num_hidden_layers:
            return f"there are more stages than the {config.num_hidden_layers} layers"
        if (count > 1 and chip.node > 1 and chip.link is None) or (count > chip.node and chip.network is None):
            return f"no network is known of more than {chip.node} of them, unless a file of chips names its network_gbs"
        return None


def layouts(config: AnyConfig, chip: Chip, count: int) -> Iterator[Layout]:
    """All that can be, those with the fewest stages and the smallest groups first."""
    for pipeline in range(1, config.num_hidden_layers + 1):
        for tensor in range(1, min(chip.node, config.num_attention_heads) + 1):
            data, rest = divmod(count, pipeline * tensor)
            layout = Layout(tensor, data, pipeline)
            if not rest and layout.obstacle(config, chip, count) is None:
                yield layout
