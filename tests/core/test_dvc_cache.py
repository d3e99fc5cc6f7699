"""What dvc.lock tells about a stage's inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.dvc_cache import maybe_unchanged

LOCK = """
stages:
  train:
    outs: [{path: artifacts/checkpoint, md5: aa}]
  export:
    deps: [{path: artifacts/checkpoint, md5: aa}, {path: pipeline/export, md5: bb}]
    params:
      params.yaml: {export: {weights: best, formats: {use: [gguf], gguf: {}, onnx: {opset: 17}}}}
      environment.yaml: {plugins.models: {}}
"""
PARAMS = "export: {weights: best, formats: {use: [gguf], gguf: {}, onnx: {opset: 18}}}\n"


@pytest.mark.parametrize(
    ("lock", "params", "unchanged"),
    [
        (LOCK, PARAMS, True),  # onnx is not chosen
        (LOCK, PARAMS.replace("best", "last"), False),
        (LOCK, "model: {}\n", False),
        (LOCK.replace("md5: aa}]", "md5: cc}]"), PARAMS, False),  # train has run since
        (LOCK.replace("  export:", "  other:"), PARAMS, False),
        ("<<<<<<< HEAD\n", PARAMS, False),
    ],
)
def test_changed_params_or_outputs_of_earlier_stages_change_a_stage(
    tmp_path: Path, lock: str, params: str, unchanged: bool
) -> None:
    (tmp_path / "params.yaml").write_text(params)
    (tmp_path / "environment.yaml").write_text("plugins: {models: {}}\n")
    assert maybe_unchanged(tmp_path, lock, "export") is unchanged
