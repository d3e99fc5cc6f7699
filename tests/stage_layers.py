"""The contract of import-linter on layers: `stages` stands for each folder of pipeline/ with a stage.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from importlinter.contracts.layers import LayersContract


class StageLayers(LayersContract):
    """Layers, so that a new stage is listed nowhere."""

    type_name = "stage_layers"

    def __init__(self, name: str, session_options: dict[str, Any], contract_options: dict[str, Any]) -> None:
        # import-linter sees packages only: of a folder without __init__.py, tests/test_dvc.py checks the imports.
        folders = sorted(path.parent for path in Path("pipeline").glob("*/stage.py"))
        stages = " | ".join(folder.name for folder in folders if (folder / "__init__.py").is_file())
        layers = [stages if layer == "stages" else layer for layer in contract_options["layers"]]
        super().__init__(name, session_options, {**contract_options, "layers": layers})
