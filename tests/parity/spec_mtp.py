"""The multi-token prediction block, transcribed from its description: one token, one head, one expert at a time.

transformers leaves this block out, so there is nothing to compare with but the description itself. Slow on purpose,
plain float64 arithmetic, weights by their official names; the comments quote what each line transcribes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from narrows.model.config import ModelConfig


@dataclass
class SpecMTP:
    """The block of one sequence. `margin`: the smallest relative gap between a chosen and a rejected expert so far."""

    config: ModelConfig
    weights: dict[str, Tensor]
    margin: float = float("inf")
    keys: list[Tensor] = field(default_factory=list)

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[f"mtp.0.{name}"]

    def forward(self, next_tokens: Tensor, streams: Tensor) -> tuple[Tensor, Tensor]:
        """next_tokens int64 [T], streams [T, S, d] of a whole sequence -> new streams [T, S, d], logits [T, vocab]."""
        new_streams, logits = [], []
        for position in range(len(next_tokens)):
            rows = self.combine(int(next_tokens[position]), list(streams[position]))
            rows = self.sublayer("attn", rows, lambda x, position=position: self.attention(x, position))
            rows = self.sublayer("ffn", rows, self.mixture)
            new_streams.append(torch.stack(rows))
            logits.append(self.logits(rows))
        return torch.stack(new_streams), torch.stack(logits)

    def combine(self, next_token: int, streams: list[Tensor]) -> list[Tensor]:
        # "e_proj(enorm(embedding of the next token)) on every stream + h_proj(hnorm(streams))"
        embedding = self.weights["embed.weight"][next_token]
        from_token = self["e_proj.weight"] @ self.norm(embedding, "enorm")
        return [from_token + self["h_proj.weight"] @ self.norm(stream, "hnorm") for stream in streams]

    def logits(self, streams: list[Tensor]) -> Tensor:
        # "its own head collapse and norm; embedding and head shared"
        mixes = self["hc_head_fn"] @ self.rms(torch.cat(streams))
        collapsed = torch.zeros_like(streams[0])
        for s, stream in enumerate(streams):
            gate = torch.sigmoid(mixes[s] * self["hc_head_scale"][0] + self["hc_head_base"][s])
            collapsed = collapsed + (gate + self.config.hc_eps) * stream
        return self.weights["head.weight"] @ self.norm(collapsed, "norm")

    # -- mHC ------------------------------------------------------------------------------------------------------

    def sublayer(self, name: str, streams: list[Tensor], function) -> list[Tensor]:  # type: ignore[no-untyped-def]
        S, eps = len(streams), self.config.hc_eps
        scale, base = self[f"hc_{name}_scale"], self[f"hc_{name}_base"]
        # "the streams, flattened, RMS-normalised (unweighted), times a matrix, give pre, post, comb row by row"
        mixes = self[f"hc_{name}_fn"] @ self.rms(torch.cat(streams))
        pre = [torch.sigmoid(mixes[s] * scale[0] + base[s]) + eps for s in range(S)]
        post = [2 * torch.sigmoid(mixes[S + s] * scale[1] + base[S + s]) for s in range(S)]
        comb = self.sinkhorn(
            [[mixes[2 * S + j * S + k] * scale[2] + base[2 * S + j * S + k] for k in range(S)] for j in range(S)]
        )
        collapsed = sum((pre[s] * streams[s] for s in range(1, S)), pre[0] * streams[0])
        out = function(self.norm(collapsed, f"{name}_norm"))
        # "new stream k = post_k · out + Σ_j comb[j, k] · old_j"
        new = []
        for k in range(S):
            stream = post[k] * out
            for j in range(S):
                stream = stream + comb[j][k] * streams[j]
            new.append(stream)
        return new

    def sinkhorn(self, logits: list[list[Tensor]]) -> list[list[Tensor]]:
        # "row softmax + eps, one column normalisation, then 19 × (rows, columns), each division guarded by eps"
        eps, S = self.config.hc_eps, len(logits)
        matrix = []
        for row in logits:
            exponentials = [torch.exp(value) for value in row]
            matrix.append([value / add(exponentials) + eps for value in exponentials])

        def columns() -> None:
            sums = [add([matrix[j][k] for j in range(S)]) for k in range(S)]
            for j in range(S):
                matrix[j] = [matrix[j][k] / (sums[k] + eps) for k in range(S)]

        def rows() -> None:
            for j in range(S):
                total = add(matrix[j])
                matrix[j] = [value / (total + eps) for value in matrix[j]]

        columns()
        for _ in range(self.config.hc_sinkhorn_iters - 1):
            rows()
            columns()
        return matrix

    # -- attention ------------------------------------------------------------------------------------------------

    def attention(self, x: Tensor, position: int) -> Tensor:
        config = self.config
        heads, dim = config.num_attention_heads, config.head_dim
        # "KV a weighted RMSNorm, then RoPE on its last dims; one KV head, K = V (the same tensor)"
        self.keys.append(self.rotate(self.norm(self["attn.wkv.weight"] @ x, "attn.kv_norm"), position))
        latent = self.norm(self["attn.wq_a.weight"] @ x, "attn.q_norm")
        queries = self["attn.wq_b.weight"] @ latent
        # "every layer attends to the last 128 tokens (itself included)"
        visible = self.keys[max(0, position + 1 - config.sliding_window) : position + 1]
        outputs = []
        for head in range(heads):
            query = self.rotate(self.rms(queries[head * dim : (head + 1) * dim]), position)
            scores = [torch.dot(query, key) * dim**-0.5 for key in visible]
            # "a learned sink logit per head joins the softmax denominator only"
            exponentials = [torch.exp(score) for score in scores]
            denominator = add(exponentials) + torch.exp(self["attn.attn_sink"][head])
            mixed = torch.zeros_like(query)
            for exponential, value in zip(exponentials, visible, strict=True):
                mixed = mixed + exponential / denominator * value
            # "the output's RoPE dims are rotated back by the query's own position"
            outputs.append(self.rotate(mixed, -position))
        # "heads in o_groups groups, each group projected to o_lora_rank, all groups together to hidden size"
        groups, rank = config.o_groups, config.o_lora_rank
        per_group = heads // groups
        projected = []
        for group in range(groups):
            grouped = torch.cat(outputs[group * per_group : (group + 1) * per_group])
            projected.append(self["attn.wo_a.weight"][group * rank : (group + 1) * rank] @ grouped)
        return self["attn.wo_b.weight"] @ torch.cat(projected)

    def rotate(self, x: Tensor, position: int) -> Tensor:
        # "θ 10000 without YaRN in sliding-only layers", "interleaved (pairs are adjacent channels)", "float32 angles"
        dims = self.config.qk_rope_head_dim
        exponents = torch.arange(0, dims, 2, dtype=torch.float32) / dims
        angles = torch.tensor(float(abs(position)), dtype=torch.float32) * (1.0 / self.config.rope_theta**exponents)
        cos, sin = angles.cos().double(), angles.sin().double()
        sin = -sin if position < 0 else sin
        rotated = list(x[: len(x) - dims])
        for pair in range(dims // 2):
            a, b = x[len(x) - dims + 2 * pair], x[len(x) - dims + 2 * pair + 1]
            rotated += [a * cos[pair] - b * sin[pair], b * cos[pair] + a * sin[pair]]
        return torch.stack(rotated)

    # -- mixture of experts ---------------------------------------------------------------------------------------

    def mixture(self, x: Tensor) -> Tensor:
        config = self.config
        # "affinity = sqrt(softplus(W_g·x)); the bias is added for choosing the top-k only"
        affinity = torch.sqrt(torch.log1p(torch.exp(self["ffn.gate.weight"] @ x)))
        biased = (affinity + self["ffn.gate.bias"]).tolist()
        ranked = sorted(range(config.n_routed_experts), key=lambda expert: (-biased[expert], expert))
        chosen, k = ranked[: config.num_experts_per_tok], config.num_experts_per_tok
        if k < len(ranked):
            gap = biased[ranked[k - 1]] - biased[ranked[k]]
            self.margin = min(self.margin, gap / max(abs(value) for value in biased))
        # "the weights are the chosen affinities, normalised to sum 1, times the routed scaling factor"
        total = add([affinity[expert] for expert in chosen]) + 1e-20
        out = self.swiglu(x, "ffn.shared_experts")
        for expert in chosen:
            weight = affinity[expert] / total * config.routed_scaling_factor
            out = out + weight * self.swiglu(x, f"ffn.experts.{expert}")
        return out

    def swiglu(self, x: Tensor, expert: str) -> Tensor:
        # "SwiGLU with up clamped to ±limit and gate to ≤ limit before silu"; w1 = gate, w3 = up, w2 = down
        limit = self.config.swiglu_limit
        gate = (self[f"{expert}.w1.weight"] @ x).clamp(max=limit)
        up = (self[f"{expert}.w3.weight"] @ x).clamp(min=-limit, max=limit)
        return self[f"{expert}.w2.weight"] @ (gate / (1 + torch.exp(-gate)) * up)

    # -- norms ----------------------------------------------------------------------------------------------------

    def rms(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).sum() / len(x) + self.config.rms_norm_eps)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return self.rms(x) * self[f"{name}.weight"]


def add(values: list[Tensor]) -> Tensor:
    total = torch.zeros_like(values[0])
    for value in values:
        total = total + value
    return total


def official_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the official names: mHC's joined by underscores, every expert's matrices for themselves."""
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".experts." in name:
            prefix, stacked = name.rsplit(".", 1)
            for expert, matrix in enumerate(tensor):
                if stacked == "w13":
                    out[f"{prefix}.{expert}.w1.weight"], out[f"{prefix}.{expert}.w3.weight"] = matrix.chunk(2)
                else:
                    out[f"{prefix}.{expert}.w2.weight"] = matrix
        elif ".hc_" in name or name.startswith("hc_"):
            prefix, leaf = name.rsplit(".", 1)
            out[f"{prefix}_{leaf}"] = tensor
        else:
            out[name] = tensor
    return out
