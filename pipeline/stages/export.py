"""export: the model in forms that other programs load, each proven before it is published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pipeline.console import fact, say
from pipeline.data.tokens import TokenFolder
from pipeline.errors import CheckpointError, ParamsError
from pipeline.files import published_folder, write_json
from pipeline.model.checkpoint import Checkpoint, load_checkpoint
from pipeline.model.device import use_threads
from pipeline.model.generate import generate
from pipeline.plugin.components import ExportSource
from pipeline.plugin.registry import Registry

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.paths import Paths

_PROOF_TOKENS = 20_000


def run(params: Params, paths: Paths) -> None:
    """Reads the checkpoint and held-out text; writes artifacts/export: the first format at the top, each
    further one in a folder of its name, and a verification.json beside each."""
    own = params.export
    registry = Registry.load(paths.plugins, ["exporters"])
    exporters = registry.build_all("exporters", own.formats.use, own.formats.options, "export.formats")
    if not exporters:
        raise ParamsError("export.formats.use is empty: name at least one format, such as huggingface")
    use_threads(params.runtime.threads)
    checkpoint = load_checkpoint(paths.checkpoint, own.weights, torch.device("cpu"))
    splits = TokenFolder(paths.splits, "run `python -m pipeline split`")
    ids = splits.ids("val")[:_PROOF_TOKENS]
    text = checkpoint.tokenizer.decode(ids[checkpoint.tokenizer.byte_lengths[ids] > 0])
    source = export_source(checkpoint, text)
    fact("read", f"{paths.shown(paths.checkpoint)}: the {own.weights} weights, of step {checkpoint.step:,}")

    with published_folder(paths.export) as folder:
        for number, exporter in enumerate(exporters):
            target = folder / exporter.name if number else folder
            target.mkdir(exist_ok=True)
            try:
                exporter.export(source, target)
                proof = exporter.verify(source, target)
            except ValueError as error:
                raise CheckpointError(
                    f"export {exporter.name}: {' '.join(str(error).split())}; nothing was published"
                ) from error
            write_json(
                target / "verification.json",
                {"format": exporter.name, "weights": own.weights, "step": checkpoint.step, **proof},
            )
            shown = (f"{value:.1e}" if isinstance(value, float) else str(value) for value in proof.values())
            named = zip((name.replace("_", " ") for name in proof), shown, strict=True)
            fact("proved", f"{exporter.name}: {', '.join(f'{name} {value}' for name, value in named)}")
            if proof.get("reader") == "none":
                say(f"         {exporter.name}'s reader is not installed: the files were only read back")
    fact("wrote", f"{paths.shown(paths.export)}")


def export_source(checkpoint: Checkpoint, text: str) -> ExportSource:
    """A checkpoint as an exporter sees it; its head and embedding are cut to the real vocabulary."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    vocab_size = model.config.vocab_size
    weights = {name: tensor.detach().float().clone() for name, tensor in model.state_dict().items()}
    for name in ("token_embedding.weight", "head.weight"):
        if name in weights:
            weights[name] = weights[name][:vocab_size].clone()

    @torch.inference_mode()
    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens).logits  # type: ignore[no-any-return]

    def greedy(ids: Sequence[int], count: int) -> list[int]:
        return [int(token) for token in generate(model, torch.tensor([list(ids)]), count)]

    return ExportSource(
        config={
            **model.config.to_dict(),
            "n_kv_heads": model.config.kv_heads,
            "mlp_dim": model.config.inner_dim,
        },
        weights=weights,
        pattern=tokenizer.pattern,
        ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
        end_of_text=tokenizer.end,
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        logits=logits,
        greedy=greedy,
        text=text,
    )
