"""What made a checkpoint, and where params.yaml or the splits have changed since."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.errors import CheckpointError, PipelineError
from pipeline.core.params_diff import contradictions
from pipeline.core.paths import RECORD
from pipeline.core.values import OPEN, read_values
from pipeline.data.tokens import TokenFolder
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params

SECTIONS = ("tokenize", "split", "model", "train")
"""The sections of params.yaml that decide a model."""
_FIX = "run `python -m pipeline train`, or `dvc repro`"


@dataclass(frozen=True)
class RunRecord:
    """What made a checkpoint: run.json in its folder.

    Attributes:
        params: The effective params of tokenize, split, model and train, as params.yaml has them.
        data: The digest of the splits.
        versions: What was installed: "python", and packages by name.
        identity: The run's fingerprint.
    """

    __pydantic_config__ = OPEN

    params: dict[str, dict[str, Any]]
    data: str
    versions: dict[str, str]
    identity: str


def read_record(folder: Path) -> RunRecord:
    """What made the checkpoint in `folder`.

    Raises:
        CheckpointError: run.json is missing, as in a checkpoint of an earlier version, or damaged.
    """
    path = folder / RECORD
    record = read_values(path, RunRecord, _FIX, CheckpointError)
    missing = [name for name in SECTIONS if name not in record.params]
    if missing:
        raise CheckpointError(f"{path} is damaged (its params lack {', '.join(missing)}): {_FIX}")
    return record


def note_changes(record: RunRecord, params: Params, splits: TokenFolder, paths: Paths) -> None:
    """Says in one line where params.yaml, and in another whether the splits, are not what made the checkpoint."""
    given = {name: getattr(params, name).model_dump(mode="json") for name in SECTIONS}
    train = {"extension": {"amount": 0}, **record.params["train"]}  # of a run that was not extended there is none
    _fill_in(given, paths)
    found = contradictions({**record.params, "train": train}, given)
    if found:
        say(
            f"note: params.yaml is not what trained this checkpoint: {'; '.join(found)}; the checkpoint's values "
            "are used"
        )
    if splits.digest != record.data:
        say(
            f"note: {paths.shown(splits.folder)} is not the data that trained this checkpoint: its held-out text "
            "may be text that the model was trained on"
        )


def _fill_in(params: dict[str, Any], paths: Paths) -> None:
    """Adds defaults of options that params.yaml leaves out and drops callbacks that only record, as in a record.

    A component that cannot be built stays as params.yaml has it.
    """
    train = params["train"]
    sections = {
        "corpora": params["tokenize"]["corpus"],
        "models": params["model"],
        "losses": train["loss"],
        "optimizers": train["optimizer"],
        "eval_callbacks": train["eval_callbacks"],
    }
    registry = Registry.load(paths.plugins, sections, note=lambda _: None)
    for kind, section in sections.items():
        for name in section.get("use", [section.get("name")]):
            with suppress(PipelineError):
                component = registry.build(kind, name, {name: section.get(name, {})}, "")
                section[name] = plain_options(component)
                if getattr(component, "records_only", False):
                    section["use"] = [each for each in section["use"] if each != name]
