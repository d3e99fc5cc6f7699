"""What exporters share: the tokenizer's file, the model as a graph, and the parts of a proof.

It is apart from `pipeline.plugin`, which every stage reads, so that a change to a proof does not train again.
"""

from pipeline.exporting.graph import graph
from pipeline.exporting.proof import (
    LARGEST_LOGIT_DIFFERENCE,
    PROOF_TOKENS,
    Logits,
    check_graph,
    check_greedy,
    check_ids,
    check_logits,
    check_loss,
    check_tokenizer_json,
    greedily,
    needed,
    real_batches,
    real_rows,
    understood,
)
from pipeline.exporting.tokenizer_json import merges, reads_any_text, tokenizer_json, written

__all__ = [
    "LARGEST_LOGIT_DIFFERENCE",
    "PROOF_TOKENS",
    "Logits",
    "check_graph",
    "check_greedy",
    "check_ids",
    "check_logits",
    "check_loss",
    "check_tokenizer_json",
    "graph",
    "greedily",
    "merges",
    "needed",
    "reads_any_text",
    "real_batches",
    "real_rows",
    "tokenizer_json",
    "understood",
    "written",
]
