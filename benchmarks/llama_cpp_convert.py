"""A checkpoint of ours to llama.cpp's file format, by llama.cpp's own converter.

`python -m benchmarks.llama_cpp_convert CHECKPOINT FILE`, with llama.cpp's folder and its `gguf-py` on PYTHONPATH. The
checkpoint is in the official layout, in float32 or BF16, and so are the matrices in the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from conversion.base import LazyTorchTensor, TextModel
from conversion.deepseek import DeepseekV4Model

_TYPES = {
    "float32": (gguf.LlamaFileType.ALL_F32, gguf.GGMLQuantizationType.F32),
    "bfloat16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
}


class _Unquantised(DeepseekV4Model):
    """What the converter makes of a published checkpoint, where ours has no FP4 experts and no tokenizer."""

    model_arch = DeepseekV4Model.model_arch
    matrices: Any

    def set_vocab(self) -> None:
        self._set_vocab_none()
        self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    def prepare_tensors(self) -> None:
        TextModel.prepare_tensors(self)  # its parent's calls the file MXFP4

    def _write_mxfp4_expert_tensor(self, bid: int, proj: str, tensor_key: Any) -> list[str]:
        """One of a layer's three stacks of experts, as it is -> the names of the tensors that went into it."""
        count = self.hparams["n_routed_experts"]
        names = [f"layers.{bid}.ffn.experts.{expert}.{proj}.weight" for expert in range(count)]
        stack = torch.stack([LazyTorchTensor.to_eager(self.model_tensors[name]()).float() for name in names])
        values = gguf.quants.quantize(stack.numpy(), self.matrices)
        self.gguf_writer.add_tensor(self.format_tensor_name(tensor_key, bid), values, raw_dtype=self.matrices)
        return names


def main(source: Path, target: Path) -> None:
    """Write the file."""
    stored = json.loads((source / "config.json").read_text(encoding="utf-8"))["torch_dtype"]
    file_type, _Unquantised.matrices = _TYPES[stored]
    _Unquantised(source, file_type, target).write()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
