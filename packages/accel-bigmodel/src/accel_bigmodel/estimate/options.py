"""What an estimate is asked beside the size of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from accel_core.errors import ConfigError, Fault

from .activations import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateOptions:
    """What is asked beside the size of the weights; everything is optional."""

    optimizer: str | None = None
    """None: the documented figure alone."""
    batch_size: int | None = None
    sequence_length: int | None = None
    gradient_checkpointing: bool = False
    shards: int = 1
    """Over how many devices the states (of ``zero_stage``) are cut."""
    zero_stage: int | None = None
    """0: nothing, 1: optimizer states, 2: gradients too, 3: weights too. None: 3 with several shards."""
    master_weights: bool = False
    """A copy of narrower weights in 32 bits, and the optimizer's states in 32 bits."""
    eager_attention: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError with everything that cannot be."""
        faults = [
            Fault(name, value, "must be at least 1")
            for name, value in (
                ("batch_size", self.batch_size),
                ("sequence_length", self.sequence_length),
                ("shards", self.shards),
            )
            if value is not None and value < 1
        ]
        if self.batch_size is not None and self.sequence_length is None:
            faults.append(Fault("sequence_length", None, "is needed with batch_size", "say how many tokens"))
        if self.zero_stage is not None and self.zero_stage not in range(4):
            faults.append(Fault("zero_stage", self.zero_stage, "is none of 0, 1, 2 and 3"))
        if self.zero_stage == 0 and self.shards > 1:
            faults.append(Fault("shards", self.shards, "has no effect with zero_stage=0", "leave one out"))
        if self.zero_stage and self.shards == 1:
            faults.append(Fault("zero_stage", self.zero_stage, "has no effect on one shard", "add shards"))
        if faults:
            raise ConfigError("memory estimate", faults)

    @property
    def stage(self) -> int:
        """Return the stage that holds."""
        return (3 if self.shards > 1 else 0) if self.zero_stage is None else self.zero_stage

    @property
    def run(self) -> Run | None:
        """Return the batch; None when none was named."""
        if self.sequence_length is None:
            return None
        return Run(self.batch_size or 1, self.sequence_length, self.eager_attention)

    @property
    def detailed(self) -> bool:
        """Tell whether training is shown in its parts."""
        return self != EstimateOptions()


__all__ = ["EstimateOptions"]
