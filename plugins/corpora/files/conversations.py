"""Conversations from JSON lines: messages, prompts with completions, instructions with outputs."""

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from pipeline.plugin import ROLES, Corpus, CorpusSource, Document, Message, all_of

from .finding import check_patterns, find
from .naming import split_of
from .ranges import after, cuts
from .reading import WHOLE, Span, blocks, form, is_compressed

_LISTED = 5
_LONGEST_LINE = 1 << 26
"""The maximum number of bytes of a line: parsing takes about ten times its size in memory."""
_SPEAKERS = {"human": "user", "gpt": "assistant"}
_UNUSABLE = ("tool_calls", "function_call", "weight", "train")
"""Keys of a message that change what is to be learnt in a way that this corpus does not know."""
_FORMS = (
    '{"messages": [{"role": "user", "content": "…"}, …]}, {"prompt", "completion"} or {"instruction", "output"}'
)


class Conversations(Corpus):
    """Conversations in .jsonl and .json files below data/raw, for fine-tuning.

    A record has `messages` (role and content), a `prompt` and a `completion`, or an `instruction`, perhaps an
    `input`, and an `output`. The model learns what the assistant says.
    """

    name: ClassVar[str] = "conversations"
    chat: ClassVar[bool] = True

    include: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("**/*.jsonl", "**/*.json")
    """The files to read below data/raw, as globs (`*.jsonl` also matches .jsonl.gz and .jsonl.zst), names or
    folders."""
    system: str = ""
    """A system message for conversations that have none; empty: none is added."""

    @field_validator("include")
    @classmethod
    def _stays_inside(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return check_patterns(patterns)

    def notes(self, root: Path) -> Iterator[str]:
        if root.is_dir() and (found := find(root, self.include)).left_out:
            yield f"files left out: {found.told()}"

    def sources(self, root: Path) -> Iterator[CorpusSource]:
        found = find(root, self.include)
        wrong = [path for path in found.texts if form(path) not in (".jsonl", ".json")]
        found.faults += [
            ValueError(f"{path} is neither .jsonl nor .json: change include, or convert it") for path in wrong
        ]
        if found.faults:
            raise all_of(found.faults, root, found.texts)
        if not found.texts:
            there = f" (left out: {found.told()})" if found.left_out else ""
            raise FileNotFoundError(
                f"{root} holds no file that matches {', '.join(self.include)}{there}: "
                f"conversations are JSON ({_FORMS})"
            )
        for path in found.texts:
            yield CorpusSource.of_file(path, root)

    def documents(self, root: Path) -> Iterator[Document]:
        sources, faults = list(self.sources(root)), list[Exception]()
        for source in sources:
            try:
                for document in self.read(root, source):
                    if not faults:
                        yield document
            except (OSError, ValueError) as error:  # read the others as well, to report all errors at once
                faults.append(error)
        if faults:
            raise all_of(faults, root, [source.path for source in sources])

    def read(self, root: Path, source: CorpusSource) -> Generator[Document, None, None]:
        path = Path(source.path)
        span = WHOLE if source.bytes == source.size else Span(source.start, source.end, source.first_record)
        relative, faults = path.relative_to(root), list[str]()
        for number, place, parse in _records(path, span):
            try:
                messages = self._messages(parse(), place)
            except ValueError as error:
                faults.append(str(error))
                continue
            if not faults:
                yield Document(f"{relative.as_posix()}#{number}", split=split_of(relative), messages=messages)
        if faults:
            more = [f"and {len(faults) - _LISTED:,} more in {path}"] * (len(faults) > _LISTED)
            raise ValueError("; ".join([*faults[:_LISTED], *more]))

    def divide(self, root: Path, source: CorpusSource, size: int) -> Iterator[CorpusSource]:
        path = Path(source.path)
        divisible = form(path) == ".jsonl" and not is_compressed(path)
        starts = [0, *(cuts(path, size, after(b"\n")) if divisible else ())]
        if len(starts) == 1:
            yield source
            return
        for start, end in zip(starts, [*starts[1:], source.size], strict=True):
            yield replace(source, name=f"{source.name}@{start}", start=start, end=end)

    def count_records(self, root: Path, source: CorpusSource) -> int:
        return sum(block.count(b"\n") for block in blocks(Path(source.path), Span(source.start, source.end)))

    def _messages(self, record: Any, place: str) -> list[Message]:
        """The messages of a record.

        Raises:
            ValueError: it is no conversation, or one without an assistant; the message has `place`.
        """
        messages = _read_record(record, place)
        if self.system and messages[0].role != "system":
            messages.insert(0, Message("system", self.system))
        if not any(message.role == "assistant" for message in messages):
            raise ValueError(f"{place} has nothing to learn: no message has the role assistant")
        return messages


def _read_record(record: Any, place: str) -> list[Message]:
    if not isinstance(record, dict):
        raise ValueError(f"{place} holds {_named(record)}, not an object such as {_FORMS}")
    if "messages" in record:
        return _read_messages(record["messages"], place, "messages")
    if "conversations" in record:
        return _read_messages(record["conversations"], place, "conversations")
    if "prompt" in record and "completion" in record:
        asked, told = record["prompt"], record["completion"]
        return [*_turn("user", asked, place, "prompt"), *_turn("assistant", told, place, "completion")]
    if "instruction" in record and "output" in record:
        texts = [record["instruction"], record.get("input") or ""]
        asked = "\n\n".join(filter(None, (_text(each, place, "instruction and input") for each in texts)))
        return [*_turn("user", asked, place, "instruction"), *_turn("assistant", record["output"], place, "output")]
    there = ", ".join(list(map(str, record))[:8]) or "none"
    raise ValueError(f"{place} is no conversation (its fields: {there}): write {_FORMS}")


def _turn(role: str, value: Any, place: str, field: str) -> list[Message]:
    """A turn that is a text, or a list of messages."""
    if isinstance(value, list):
        return _read_messages(value, place, field)
    text = _text(value, place, field)
    if not text.strip():
        raise ValueError(f"{place}: {field} is blank")
    return [Message(role, text)]


def _read_messages(value: Any, place: str, field: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{place}: {field} must be a list of messages, not {_named(value)}")
    return [_read_message(each, f"{place}: message {number}") for number, each in enumerate(value, start=1)]


def _read_message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f'{place} holds {_named(value)}, not an object such as {{"role": "user", "content": "…"}}')
    if unusable := next((key for key in _UNUSABLE if value.get(key) is not None), None):
        raise ValueError(f"{place} has {unusable!r}, which this corpus does not use: remove it or the conversation")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    role = _SPEAKERS.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"{place} has the role {str(role)[:20]!r}: it must be one of {', '.join(ROLES)}")
    if isinstance(content, list):  # parts of several media
        content = "".join(_text_part(part, place) for part in content)
    text = _text(content, place, "content")
    if role == "assistant" and not text.strip():
        raise ValueError(f"{place}: the assistant says nothing")
    return Message(role, text)


def _text_part(part: Any, place: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise ValueError(f"{place} has a part that is no text ({str(kind)[:20]!r}): remove it or the conversation")
    return _text(part.get("text"), place, "content")


def _text(value: Any, place: str, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: {field} must be a text, not {_named(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: {field} holds half a surrogate pair, which is no character: fix it") from None
    return value


_Record = tuple[int, str, Callable[[], Any]]
"""The number of a record, its place for messages, and a function that parses it."""


def _records(path: Path, span: Span) -> Iterator[_Record]:
    """The records of a file.

    Raises:
        ValueError: a .json file is not JSON, or the file is damaged.
    """
    if form(path) == ".json":
        items = _parsed(b"".join(blocks(path)), f"{path}", "a file with an object on each line must end in .jsonl")
        for number, item in enumerate(items if isinstance(items, list) else [items], start=1):
            yield number, f"{path} item {number}", lambda item=item: item
        return
    for number, line in enumerate(_lines(blocks(path, span), path), start=span.first_record + 1):
        if line.strip():
            place = f"{path} line {number}"
            yield number, place, lambda line=line, place=place: _parsed(line, place, "a line holds one object")


def _lines(data: Iterable[bytes], path: Path) -> Iterator[bytes]:
    pending = b""
    for block in chain(data, [b"\n"]):
        *ended, rest = block.split(b"\n")
        for line in ended:
            yield pending + line
            pending = b""
        pending += rest
        if len(pending) > _LONGEST_LINE:
            raise ValueError(
                f"{path} has a line of over {_LONGEST_LINE:,} bytes: put each record on a line of its own"
            )


def _parsed(data: bytes, place: str, hint: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 at byte {error.start:,}: convert it (iconv -t UTF-8)") from None
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{place} is not JSON ({error}): {hint}") from None


def _named(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return "an empty list" if value == [] else names.get(type(value), "a number")
