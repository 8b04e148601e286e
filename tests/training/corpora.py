"""A small corpus and a small network for the tests of training."""

from pathlib import Path

import torch

import narrows
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.network import Network
from narrows.model.presets import TINY
from narrows.text.tokenizer import Tokenizer
from narrows.training.batches import Documents

TOKENIZER = Tokenizer.from_directory(Path(narrows.__file__).parent / "embedded")
# Both kinds of routing and of compression, in as few operations as that takes.
CONFIG: ModelConfig = TINY.model_copy(
    update={
        "vocab_size": TOKENIZER.vocab_size,
        "num_hidden_layers": 2,
        "layer_types": (LayerKind.HCA, LayerKind.CSA),
        "hca_ratio": 16,
        "hc_sinkhorn_iters": 2,
    }
)
TEXTS = [
    "def add(a, b):\n    return a + b\n" * 12,
    "x = 1\n",
    "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n" * 9,
    "",
    "# Grüße → 你好\n" * 7,
]
DOCUMENTS = Documents(TOKENIZER, TEXTS)


def network(seed: int = 0) -> Network:
    """A freshly drawn TINY network with the embedded tokenizer's vocabulary."""
    torch.manual_seed(seed)
    made = Network(CONFIG)
    made.initialise()
    return made
