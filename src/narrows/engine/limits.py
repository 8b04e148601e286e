"""What an engine may take, and how it shares it among requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from narrows.engine.scheduler import Policy
from narrows.errors import UsageError

# A rejected row costs as much as an accepted one, and chains of guesses seldom hold for long.
MOST_DRAFTS = 8


@dataclass(frozen=True)
class Limits:
    """Memory and sharing. `slots`: sequences that run at once; `memory`: bytes for their states, blocks and snapshots
    (with `drafts` the MTP block's windows, one a slot, come on top); `snapshot_every`: tokens of a long prompt between
    snapshots; `drafts`: tokens that the MTP block guesses ahead, for sequences of whose guesses at least the share
    `draft_rate` came true of late."""

    memory: int = 1 << 30
    slots: int = 16
    snapshot_every: int = 2048
    snapshot_share: float = 0.2
    drafts: int = 0
    draft_rate: float = 0.5
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        for name in ("memory", "slots", "snapshot_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} is {value!r}; give the engine a whole number from 1.")
        if not 0 <= self.snapshot_share < 1:
            raise UsageError(f"snapshot_share is {self.snapshot_share!r}; give a number from 0 to below 1.")
        if type(self.drafts) is not int or not 0 <= self.drafts <= MOST_DRAFTS:
            raise UsageError(f"drafts is {self.drafts!r}; give a whole number from 0 to {MOST_DRAFTS}.")
        if not isinstance(self.draft_rate, int | float) or not 0 <= self.draft_rate <= 1:
            raise UsageError(f"draft_rate is {self.draft_rate!r}; give a number from 0 to 1.")
