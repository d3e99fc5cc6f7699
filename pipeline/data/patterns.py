"""Split patterns: the regular expressions that cut text into words before a BPE merges their bytes."""

from __future__ import annotations

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""How gpt2 cuts text into words before merging bytes (Radford et al., 2019); written with possessive
quantifiers, which match the same and never backtrack."""

CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
"""How cl100k_base does, as tiktoken writes it."""

_FASTER = {
    GPT2_PATTERN: r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+$)|\s+(?!\S)|\s",
    CL100K_PATTERN: (
        r"(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|\s*[\r\n])|"
        r"\s+(?!\S)|\s"
    ),
}


def faster(pattern: str) -> str:
    """A pattern that cuts every text as `pattern` does, in less time where one is known.

    tiktoken's regular expressions run on an automaton, but for look-aheads and possessive quantifiers, which
    backtrack. In a group of its own, and with plain quantifiers, all that stands before the look-ahead is one
    automaton. A possessive quantifier matters only where giving back characters could help what follows it: here
    nothing follows, or what cannot match them.
    """
    return _FASTER.get(pattern, pattern)
