"""Helpers for exporters: tokenizer.json, the model as a graph, and checks for `verify`.

They are separate from `pipeline.plugin`, on which every stage depends, so that changes here do not retrain models.
"""

from pipeline.exporting.chat_proof import answer_from_greedy, chat_proof, check_answer, check_chat_ids
from pipeline.exporting.chat_template import portable_template
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
    greedy_from_logits,
    missing_package,
    reader_errors,
    real_batches,
    real_rows,
)
from pipeline.exporting.tokenizer_json import byte_level_text, is_byte_level, merges, tokenizer_json

__all__ = [
    "LARGEST_LOGIT_DIFFERENCE",
    "PROOF_TOKENS",
    "Logits",
    "answer_from_greedy",
    "byte_level_text",
    "chat_proof",
    "check_answer",
    "check_chat_ids",
    "check_graph",
    "check_greedy",
    "check_ids",
    "check_logits",
    "check_loss",
    "check_tokenizer_json",
    "graph",
    "greedy_from_logits",
    "is_byte_level",
    "merges",
    "missing_package",
    "portable_template",
    "reader_errors",
    "real_batches",
    "real_rows",
    "tokenizer_json",
]
