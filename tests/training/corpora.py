"""A small corpus, a small recipe and a small network for the tests of training."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import narrows
from narrows.corpus.encode import encode
from narrows.corpus.shards import Corpus
from narrows.corpus.write import Documents, write_description, write_split
from narrows.model.config import LayerKind, ModelConfig
from narrows.model.network import Network
from narrows.model.presets import TINY
from narrows.text.tokenizer import Tokenizer
from narrows.training.recipe import Recipe
from narrows.training.samples import TokenStream

EMBEDDED = Path(narrows.__file__).parent / "embedded"
TOKENIZER = Tokenizer.from_directory(EMBEDDED)
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
PACKAGES: Mapping[str, list[str]] = {
    "sums": ["def add(a, b):\n    return a + b\n" * 12, "x = 1\n", "# Grüße → 你好\n" * 7],
    "points": ["class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n" * 9],
    "young": ["def subtract(a, b):\n    return a - b\n" * 5, "y = 2\n"],
}
TEXTS = [text for texts in PACKAGES.values() for text in texts]
STREAM = TokenStream(TOKENIZER, [[TOKENIZER.encode(text) for text in texts] for texts in PACKAGES.values()])


def write_corpus(folder: Path, packages: Mapping[str, list[str]] = PACKAGES) -> Corpus:
    """`packages` as `narrows data build` would leave them, the last one held out."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder)
    documents = [
        Documents(number, encode(texts, TOKENIZER), tuple(f"{name}/{place}.py" for place in range(len(texts))))
        for number, (name, texts) in enumerate(packages.items())
    ]
    held_out = list(packages)[-1]
    split_of = {name: "held_out" if name == held_out else "train" for name in packages}
    write_description(
        folder,
        {
            "format": 1,
            "tokenizer_sha256": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
            "vocab_size": TOKENIZER.vocab_size,
            "splits": {
                "train": write_split(folder, "train", documents[:-1], TOKENIZER.vocab_size),
                "held_out": write_split(folder, "held_out", documents[-1:], TOKENIZER.vocab_size),
            },
            "packages": [
                {"name": name, "version": "1.0", "split": split_of[name], "licence": "MIT"} for name in packages
            ],
        },
    )
    return Corpus(folder)


STAGES: list[dict[str, Any]] = [
    {"steps": 3, "sample_length": 48, "rows_per_pass": 64, "passes_per_step": 2, "mtp": False},
    {"steps": 1, "sample_length": 48, "rows_per_pass": 64, "train": "indexers"},
    {"steps": 3, "sample_length": 96, "rows_per_pass": 96, "attention": "sparse", "rounded": True},
]


RECIPE = """
format = 1
name = "test"
corpus = "corpus"
[model]
hidden_size = 64
num_hidden_layers = 2
layer_types = ["sliding_attention", "compressed_sparse_attention"]
num_hash_layers = 1
num_attention_heads = 4
head_dim = 32
qk_rope_head_dim = 16
q_lora_rank = 32
o_groups = 2
o_lora_rank = 32
index_n_heads = 16
index_head_dim = 16
index_topk = 8
moe_intermediate_size = 32
n_routed_experts = 4
num_experts_per_tok = 2
[optimiser]
learning_rate = 1e-2
final_learning_rate = 1e-3
warm_up_steps = 2
cosine_from = 0.5
[[stages]]
steps = 10
sample_length = 64
rows_per_pass = 128
"""


def recipe(stages: list[dict[str, Any]] | None = None, **changes: Any) -> Recipe:
    """Seven steps through all kinds of stages, with a state saved behind every step."""
    model = CONFIG.to_dict()
    del model["vocab_size"]
    optimiser = {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "warm_up_steps": 2, "cosine_from": 0.5}
    fields: dict[str, Any] = {
        "format": 1,
        "name": "test",
        "corpus": "corpus",
        "seconds_between_checkpoints": 0,
        "steps_between_evaluations": 5,
        "evaluation_tokens": 100,
        "model": {name: value for name, value in model.items() if value is not None},
        "optimiser": optimiser,
        "stages": stages or STAGES,
    }
    return Recipe(**{**fields, **changes})


def network(seed: int = 0) -> Network:
    """A freshly drawn network with the embedded tokenizer's vocabulary."""
    torch.manual_seed(seed)
    made = Network(CONFIG)
    made.initialise()
    return made
