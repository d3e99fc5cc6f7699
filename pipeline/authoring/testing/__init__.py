"""The contract suite: the rules that a component of each kind must satisfy.

A test of a plugin is one line, with the class, or with an instance to test other options:

    from pipeline.authoring.testing import check_loss

    def test_my_loss() -> None:
        check_loss(MyLoss)

Each check raises AssertionError with the broken rule.
"""

from pipeline.authoring.testing.batch_sampler import check_batch_sampler, text_index
from pipeline.authoring.testing.corpus import check_corpus
from pipeline.authoring.testing.eval_callback import check_eval_callback, event, step_event
from pipeline.authoring.testing.exporter import Refused, check_exporter
from pipeline.authoring.testing.loss import check_loss
from pipeline.authoring.testing.metric import check_metric, token_scores
from pipeline.authoring.testing.model import check_model
from pipeline.authoring.testing.optimizer import check_optimizer
from pipeline.authoring.testing.sampler import check_sampler
from pipeline.authoring.testing.schedule import check_schedule

__all__ = [
    "Refused",
    "check_batch_sampler",
    "check_corpus",
    "check_eval_callback",
    "check_exporter",
    "check_loss",
    "check_metric",
    "check_model",
    "check_optimizer",
    "check_sampler",
    "check_schedule",
    "event",
    "step_event",
    "text_index",
    "token_scores",
]
