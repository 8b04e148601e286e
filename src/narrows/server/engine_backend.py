"""A loaded model behind the server's interface."""

from __future__ import annotations

import time
from collections.abc import Mapping

from narrows.engine.grammar import Vocabulary
from narrows.engine.model import Model
from narrows.engine.paged_history import block_tokens
from narrows.server.backend import Job, ModelInfo, Stream


class EngineBackend:
    """Runs jobs on a model's engine."""

    def __init__(self, model: Model, name: str, *, chat: bool) -> None:
        """`name`: what requests call it; `chat`: it was trained to answer."""
        self._model = model  # with which its engine would end
        self._engine = model.engine
        config = model.config
        stats = self._engine.stats()
        positions = config.max_position_embeddings
        held = stats["blocks"] * block_tokens(config) if stats["block_bytes"] else positions
        self.info = ModelInfo(
            name=name,
            tokenizer=model.tokenizer,
            vocab_size=config.vocab_size,
            context=min(positions, held),
            created=int(time.time()),
            chat=chat,
            fim_layout=config.fim_layout,
            trained=config.trained_context,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        return self._engine.vocabulary

    def start(self, job: Job) -> Stream:
        return self._engine.submit(
            job.prompt,
            job.parameters,
            priority=job.priority,
            timeout=job.timeout,
            grammar=job.grammar,
            grammar_after=job.grammar_after,
            thinking=job.thinking,
        )

    def stats(self) -> Mapping[str, float]:
        return self._engine.stats()
