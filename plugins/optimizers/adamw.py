"""The AdamW optimizer."""

from collections.abc import Iterable
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from pipeline.plugin import Optimizer, hookimpl


class AdamW(Optimizer):
    """AdamW: Adam with decoupled weight decay (Loshchilov & Hutter, 2019).

    Norms, biases and embeddings have no weight decay.
    """

    name: ClassVar[str] = "adamw"
    works_on_shards: ClassVar[bool] = True

    lr: Annotated[float, Field(gt=0)] = 4e-4
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The decay rate of the mean gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """The decay rate of the mean squared gradient."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Epsilon: added to the denominator for numerical stability."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices, multiplied by the learning rate."""
    embedding_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    """The learning rate of embeddings and an untied head as a multiple of `lr`; for small models, 10 or more works
    well."""
    plain: bool = False
    """Use one parameter group with weight decay for all parameters, as textbooks do."""

    def build(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        settings = {"lr": self.lr, "betas": (self.beta1, self.beta2), "eps": self.eps}
        if self.plain:
            parameters = [parameter for _, parameter in named_parameters]
            return torch.optim.AdamW(parameters, weight_decay=self.weight_decay, fused=True, **settings)
        matrices, vectors, embeddings, head = [], [], [], []
        for name, parameter in named_parameters:
            if "embedding" in name:
                embeddings.append(parameter)
            elif name == "head.weight":
                head.append(parameter)
            else:
                (matrices if parameter.ndim >= 2 else vectors).append(parameter)
        fast = self.embedding_lr_scale * self.lr
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
            {"params": embeddings, "weight_decay": 0.0, "lr": fast},
            {"params": head, "weight_decay": self.weight_decay, "lr": fast},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], fused=True, **settings)


@hookimpl
def register_optimizers() -> list[type[Optimizer]]:
    return [AdamW]
