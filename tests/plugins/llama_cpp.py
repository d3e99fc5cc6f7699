"""llama.cpp, as the package xllamacpp brings it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class LlamaCpp:
    """A file in a server of llama.cpp, asked over the loopback interface."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, what: str, **values: Any) -> Any:
        body = json.dumps(values).encode()
        request = urllib.request.Request(f"{self.url}/{what}", body, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.ask("tokenize", content=text, add_special=False, parse_special=False)["tokens"]
        return ids

    def continued(self, ids: list[int], count: int) -> tuple[list[int], list[dict[int, float]]]:
        """The ids that it continues with, greedily, and for each the log-probabilities of the ten likeliest.

        Of a part of a character, it does not tell them: an empty dict.
        """
        answer = self.ask(
            "completion", prompt=ids, n_predict=count, temperature=0, n_probs=10, return_tokens=True,
            cache_prompt=False, ignore_eos=True,
        )  # fmt: skip
        told = list(answer["completion_probabilities"])
        likeliest = []
        for token in answer["tokens"]:
            rivals = told.pop(0)["top_logprobs"] if told and told[0]["id"] == token else []
            likeliest.append({each["id"]: each["logprob"] for each in rivals})
        assert not told
        return answer["tokens"], likeliest


@contextmanager
def served(path: Path, context: int) -> Iterator[LlamaCpp]:
    """In single precision throughout: keys and values too, and without flash attention, which rounds them."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = context, 1, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.fit_params = False
    server = xllamacpp.Server(params)
    yield LlamaCpp(server.listening_address)
    del server
