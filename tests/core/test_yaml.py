"""YAML that people edit: what it may hold, and that a short text cannot stand for much."""

from __future__ import annotations

import time

import pytest
from ruamel.yaml.error import YAMLError

from pipeline.core.yaml import yaml_values

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)  # fmt: skip
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "aliases"),
        (MERGES, "aliases"),
        ("zzz: &z {q: *z}", "*z"),
        ("- &a [*a]", "*a"),
        ("x: " + "[" * 5000, "nested"),
        ("x: " + "9" * 5000, "4300"),
        ("x: 0x" + "f" * 5000, "64 bits"),
        (f"x: {{y: {2**64}}}", "x.y"),
        ("a: 1\n---\na: 2\n", "several documents"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("1: x", "1"),
        ("x: !!binary gA==", "bytes"),
        ("x: 2024-01-01", "date"),
        ("x: !!set {a, b}", "set"),
        ("x: !!python/object:os.system {}", "python/object"),
        ("a:\tb\n\tc: d", "token"),
        ("a: \x00", "special characters"),
        ("<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n", ""),
        ("# " + "x" * 300_000, "characters"),
        ("? {a: 1}\n: 2", ""),
    ],
    ids=range(20),
)
def test_what_is_no_settings_is_refused_at_once(text: str, says: str) -> None:
    started = time.monotonic()
    with pytest.raises(YAMLError) as error:
        yaml_values(text)
    message = str(error.value)
    assert says in message
    assert len(message) < 1000
    assert time.monotonic() - started < 10


def test_anchors_and_merge_keys_may_be_used_as_in_any_yaml() -> None:
    text = "base: &b {lr: 1e-3, name: x}\nother: {<<: *b, name: y}\nlist: [*b, *b]\n"
    base = {"lr": 1e-3, "name": "x"}
    assert yaml_values(text) == {"base": base, "other": {"lr": 1e-3, "name": "y"}, "list": [base, base]}


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert yaml_values("\ufeffa: 1") == {"a": 1}
