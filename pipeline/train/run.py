"""A training run: model, optimizer, data, phase and runtime config, built once and immutable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from pipeline.distributed.interrupt import StopSignal
from pipeline.distributed.ranks import Ranks
from pipeline.model.architecture import LanguageModel, checked_forward
from pipeline.model.device import keep_memory, use_threads
from pipeline.plugin.components import ModelOutput
from pipeline.train import memory_check
from pipeline.train.checkpoint_store import CheckpointSaver
from pipeline.train.components import Components
from pipeline.train.data import TrainingData
from pipeline.train.length import Length, rank_micro_batch_size
from pipeline.train.parallel import Parallel, prepared
from pipeline.train.phases import Phase
from pipeline.train.runtime_config import RuntimeConfig
from pipeline.train.steps import STEPS, LiveTable
from pipeline.train.teacher import Teacher

if TYPE_CHECKING:
    from pipeline.params.params import Params, TrainParams


@dataclass(frozen=True)
class TrainingRun:
    """The immutable part of a run: what the loop, evaluations and publishing use.

    Attributes:
        params: The section `train`.
        components: The chosen model, loss, optimizer, schedule, batch sampler and callbacks.
        data: The tokens of train and val, and their windows.
        phase: The run's length, learning rates and checkpoint store.
        runtime_config: Device, threads, processes, precision, compilation and recomputation, as resolved.
        parallel: The model, laid out over the ranks.
        scaler: Scales the loss in fp16, where small gradients would be rounded to 0; else it does nothing.
        saver: Writes training checkpoints.
        stop: The requests to stop: signals, and the parent's death.
        teacher: The frozen model of a distillation loss; None if the loss needs none.
    """

    params: TrainParams
    components: Components
    data: TrainingData
    phase: Phase
    runtime_config: RuntimeConfig
    parallel: Parallel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    saver: CheckpointSaver
    stop: StopSignal
    teacher: LanguageModel | None = None

    @classmethod
    def build(
        cls,
        params: Params,
        components: Components,
        data: TrainingData,
        phase: Phase,
        runtime_config: RuntimeConfig,
        ranks: Ranks | None = None,
        stop: StopSignal | None = None,
        make: Callable[[], LanguageModel] | None = None,
        teacher: Teacher | None = None,
    ) -> TrainingRun:
        """Builds the model (with `make`, if given), lays it out over the ranks, and builds its optimizer.

        Raises:
            ParamsError: the model needs more memory than the device has.
            CheckpointError, DataError: the teacher cannot be read or does not fit the data.
            PluginError: the optimizer cannot be built for this model.
        """
        ranks = ranks or Ranks()
        use_threads(runtime_config.threads)
        if params.runtime.keep_memory:
            keep_memory()
        torch.manual_seed(params.train.seed)
        architecture = components.architecture(params.model, data.tokenizer)
        device = torch.device(runtime_config.device)
        micro_batch_size = rank_micro_batch_size(params.train, ranks.world_size)
        micro_batch_size = min(micro_batch_size, max(phase.length.phase_windows))
        memory_check.check_fits(architecture, device, runtime_config.strategy, ranks.world_size, micro_batch_size)
        parallel = parallelize(make or architecture.make, ranks, runtime_config)
        return cls(
            params=params.train,
            components=components,
            data=data,
            phase=phase,
            runtime_config=runtime_config,
            parallel=parallel,
            optimizer=components.build_optimizer(parallel.model, parallel.sharded, phase.length.phase_steps[0]),
            scaler=torch.amp.GradScaler(device.type, enabled=runtime_config.precision == "fp16"),
            saver=CheckpointSaver(phase.store, params.runtime.save_seconds, parallel.writers, device.type),
            stop=stop or StopSignal(),
            teacher=teacher.load(data.tokenizer, architecture, device, components.plugins) if teacher else None,
        )

    def for_phase(self, phase: Phase) -> TrainingRun:
        """This run with the length, schedule and checkpoint store of another phase."""
        return replace(self, phase=phase, saver=replace(self.saver, store=phase.store))

    @cached_property
    def live(self) -> LiveTable:
        """The table of the phase's steps that `pipeline runs --watch` reads."""
        return LiveTable(self.phase.store.folder / STEPS)

    @property
    def model(self) -> LanguageModel:
        return self.parallel.model

    @property
    def device(self) -> torch.device:
        return self.parallel.device

    @property
    def length(self) -> Length:
        """The phase's length, and which windows each step reads."""
        return self.phase.length

    @property
    def reads_late(self) -> bool:
        """Whether a step's loss and norm are read after the next step was started, so that a GPU does not wait. Not
        if a bad step is to be skipped, or a callback gets the numbers of each step."""
        at_once = self.params.skip_bad_steps or self.components.callbacks_with("after_step")
        return self.device.type == "cuda" and not at_once

    @property
    def total_steps(self) -> int:
        return self.length.total_steps

    @property
    def micro_batch_size(self) -> int:
        """Windows in a micro-batch; see `rank_micro_batch_size`."""
        return rank_micro_batch_size(self.params, self.parallel.ranks.world_size)

    def offsets(self, step: int) -> list[int]:
        """The token offsets of the windows of a step."""
        return self.data.windows.offsets(*self.length.windows(step), self.length.phase_windows[0])

    def autocast(self) -> torch.autocast:
        """An autocast context of the run's precision; for fp32 it does nothing. Under FSDP2 the cast weights are
        not cached: that would be a copy of the full model on every rank."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.runtime_config.precision)
        return torch.autocast(
            self.device.type,
            dtype or torch.bfloat16,
            enabled=dtype is not None,
            cache_enabled=not self.parallel.sharded,
        )

    @torch.no_grad()
    def teach(self, ids: torch.Tensor) -> ModelOutput:
        """The teacher's output for ids [B, T]."""
        assert self.teacher is not None  # Teacher.of found that the loss takes one
        with self.autocast():
            return checked_forward(self.teacher, ids)

    def to_device(self, ids: torch.Tensor) -> torch.Tensor:
        """Copies ids to the device; to a GPU asynchronously, from pinned memory."""
        if self.device.type == "cuda":
            return ids.pin_memory().to(self.device, non_blocking=True)
        return ids.to(self.device)

    def stop_if_asked(self) -> None:
        """Raises StopRequested on every rank if any rank was asked to stop. All ranks must call it."""
        self.stop.check(self.parallel.ranks)


def parallelize(make: Callable[[], LanguageModel], ranks: Ranks, config: RuntimeConfig) -> Parallel:
    """Builds a model and lays it out over the ranks, which are connected; `make` builds the full model, with the
    same weights on every rank."""
    if ranks.world_size == 1:
        return Parallel(model=prepared(make, config), compiled=config.compiled)
    from pipeline.train.distributed.parallel import ddp, fsdp2

    return (fsdp2 if config.strategy == "fsdp" else ddp)(make, ranks, config)
