"""The record of the run that trained a checkpoint, and a comparison with params.yaml and the splits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.console import say
from pipeline.core.errors import CheckpointError, PipelineError
from pipeline.core.params_diff import contradictions, effective, flatten
from pipeline.core.paths import RECORD
from pipeline.core.values import OPEN, read_values
from pipeline.data.tokens import TokenFolder
from pipeline.plugin.options import plain_options
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.core.paths import Paths
    from pipeline.params.params import Params

SECTIONS = ("tokenize", "split", "model", "train")
"""The sections of params.yaml that decide a trained model."""
_FIX = "run `dvc checkout` or `dvc pull` to restore a committed one, or `pipeline train` or `dvc repro` to make one"


@dataclass(frozen=True)
class RunRecord:
    """The record of the run that trained a checkpoint: run.json in its folder.

    Attributes:
        params: The effective params of tokenize, split, model and train, by section.
        data: The digest of the splits.
        versions: The versions of "python" and of packages.
        identity: The run's fingerprint.
    """

    __pydantic_config__ = OPEN

    params: dict[str, dict[str, Any]]
    data: str
    versions: dict[str, str]
    identity: str


def read_record(folder: Path) -> RunRecord:
    """Reads the record of the checkpoint in `folder`.

    Raises:
        CheckpointError: run.json is corrupt, or missing, as in checkpoints of earlier versions.
    """
    path = folder / RECORD
    record = read_values(path, RunRecord, _FIX, CheckpointError)
    missing = [name for name in SECTIONS if name not in record.params]
    if missing:
        raise CheckpointError(f"{path} is corrupt (it lacks {', '.join(missing)}): {_FIX}")
    return record


def note_changes(record: RunRecord, params: Params, splits: TokenFolder, paths: Paths) -> None:
    """Prints a note if params.yaml, and another if the splits differ from what trained the checkpoint."""
    # The record omits the extension unless the run was extended.
    train = {"extension": {"amount": 0}, **record.params["train"]}
    found = _contradictions({**record.params, "train": train}, params, paths)
    if found:
        values = "; ".join(
            f"{name} is {now} in params.yaml, {then} in the checkpoint" for name, (then, now) in found.items()
        )
        say(f"note: params.yaml is not what trained this checkpoint, whose values are used: {values}")
    if splits.digest != record.data:
        say(
            f"note: {paths.shown(splits.folder)} is not the data that trained this checkpoint: the model may have "
            "seen its held-out text in training"
        )


def note_other_data(splits: TokenFolder, params: Params, paths: Paths) -> None:
    """Prints a note if the splits were made with other params than those of params.yaml."""
    recorded = {name: splits.meta["params"].get(name, {}) for name in ("tokenize", "split")}
    found = _contradictions(recorded, params, paths)
    found.pop("tokenize.store", None)  # where tokens lie changes none
    if found:
        values = "; ".join(f"{name} is {now} in params.yaml, was {then}" for name, (then, now) in found.items())
        say(
            f"note: {paths.shown(splits.folder)} was made with other params ({values}): run tokenize and split, or "
            "`dvc repro`"
        )


def _contradictions(recorded: dict[str, Any], params: Params, paths: Paths) -> dict[str, tuple[str, str]]:
    """The recorded params that differ from params.yaml, which may omit options that have their defaults."""
    given = {name: getattr(params, name).model_dump(mode="json") for name in SECTIONS}
    if flatten(effective(recorded)).items() <= flatten(effective(given)).items():
        return {}  # without loading the plugins for their defaults
    _fill_in(given, paths)
    return contradictions(recorded, given)


def _fill_in(params: dict[str, Any], paths: Paths) -> None:
    """Changes params to the form of a record: adds the defaults of omitted options, removes callbacks with
    `records_only`. Components that cannot be built stay unchanged.
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
