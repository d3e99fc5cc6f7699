"""The text interface to a checkpoint for task metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.data.batches import EvaluationWindow, evaluation_windows
from pipeline.data.masked import MaskedIds
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.device import device_of
from pipeline.model.generate import generate
from pipeline.model.scoring import score
from pipeline.plugin.components import TextModel


def text_model(checkpoint: Checkpoint, ends: bool, batch_size: int, folder: Path) -> TextModel:
    """Wraps a checkpoint as a `TextModel`.

    Args:
        checkpoint: The model and its tokenizer.
        ends: Whether documents ended with the end-of-text token in training. If so, it is put before each text.
        batch_size: The number of windows computed at once.
        folder: The folder of the tasks' files.
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    context, device = model.architecture.shape.context_length, device_of(model)

    def nats(prompt: str, texts: Sequence[str]) -> list[float]:
        """The nats of each text after the prompt. Longer texts than the context are scored in overlapping
        windows."""
        before = [int(token) for token in tokenizer.encode(prompt)]
        before = [tokenizer.end_of_text, *before] if ends or not before else before
        ids: list[int] = []
        windows: list[EvaluationWindow] = []
        owners: list[int] = []
        for number, text in enumerate(texts):
            continuation = [*before, *(int(token) for token in tokenizer.encode(text))]
            for window in evaluation_windows(len(continuation), context, max(1, context // 2)):
                counted = min(window.counted, window.end - len(before))
                if counted > 0:
                    windows.append(EvaluationWindow(len(ids) + window.start, len(ids) + window.end, counted))
                    owners += [number] * counted
            ids += continuation
        scores = score(model, MaskedIds(np.array(ids, dtype=np.uint32)), windows, batch_size)
        found = np.concatenate([np.zeros(0), *(each.nats for each in scores)])
        return [float(total) for total in np.bincount(owners, found, len(texts))] if owners else [0.0] * len(texts)

    def choose(prompt: str, options: Sequence[str]) -> int:
        found = nats(prompt, options)
        return found.index(min(found))

    def continued(prompt: str, max_new_tokens: int = 50, temperature: float = 0.0) -> str:
        start = [int(token) for token in tokenizer.encode(prompt)] or [tokenizer.end_of_text]
        generator = torch.Generator(device).manual_seed(0) if temperature > 0 else None
        samplers = [lambda logits, tokens: logits / max(temperature, 1e-6)] if temperature > 0 else []
        drawn = generate(
            model, torch.tensor([start], device=device), max_new_tokens, samplers, generator, tokenizer.end_of_text
        )
        return prompt + tokenizer.decode([int(token) for token in drawn])

    return TextModel(lambda text, prompt="": nats(prompt, [text])[0], choose, continued, folder)
