"""Answers on disk: those a language model gave, kept as they arrive, and those recorded before, given again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from schemas.errors import DataError
from workers.writing.prompts import prompt_named
from workers.writing.provider import Answer, Asked

PACKAGED = Path(__file__).parent / "recordings"
FILMS = PACKAGED / "movielens-100k-items.jsonl"  # written knowledge of the demo's films; see NOTICE


class Answers:
    """A file of answers, one JSON object a line, appended to as they arrive. A killed run loses at most the last line.

    A line has `key`, or `prompt` (name and version) and `input`, from which the key follows; and `answer`, or
    `refused`, why there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unreadable = 0

    def read(self) -> dict[tuple[str, str], Answer]:
        """Return the answers by key and model, the last of each.

        Raises:
            DataError: the file cannot be read.
        """
        found, self.unreadable = {}, 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    if (answer := _answer(line)) is not None:
                        found[answer.key, answer.model] = answer
                    elif line.strip():
                        self.unreadable += 1
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        return found

    def keep(self, answers: Iterable[tuple[Asked, Answer]], clock: Callable[[], float] = time.time) -> Iterator[Answer]:
        """Append answers as they come and yield them. A question that was left open is not kept.

        Closing this iterator closes that of the answers.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() and not _ends_whole(self.path):
                file.write(b"\n")  # of a killed run
            for asked, answer in answers:
                if answer.final:
                    file.write(orjson.dumps({
                        "key": asked.key, "prompt": asked.prompt, "input": asked.input, "answer": answer.text,
                        "model": answer.model, "read": answer.read, "written": answer.written,
                        "cost": answer.cost, "cut": answer.cut, "refused": answer.refused, "at": round(clock(), 3),
                    }) + b"\n")
                    file.flush()  # a kill of the process loses nothing of what was paid for
                yield answer


class RecordedProvider:
    """A `Provider` that gives recorded answers and has none to other questions.

    Args:
        path: a file of `Answers`, of any model.

    Raises:
        DataError: the file is not there, cannot be read or has no answer.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"there is no recording {path}; FRESHET_WRITER_RECORDING names a file of answers")
        self._answers = {key: answer for (key, _), answer in Answers(path).read().items()}
        if not self._answers:
            raise DataError(f"{path} has no recorded answer")
        models = {answer.model for answer in self._answers.values()}
        self.model = models.pop() if len(models) == 1 else "recorded"
        self.about = f"recorded answers in {path}"

    def cost(self, read: float, written: float) -> float | None:
        """See `Provider.cost`: nothing."""
        return 0.0

    def has(self, asked: Asked) -> bool:
        """Return whether there is an answer to a question."""
        return asked.key in self._answers

    def answers(self, asked: Sequence[Asked]) -> Iterator[Answer]:
        """See `Provider.answers`."""
        for question in asked:
            found = self._answers.get(question.key)
            if found is None:
                yield Answer(question.key, "", self.model, refused="not recorded", final=False)
            else:  # tokens and cost were spent when it was recorded
                yield Answer(found.key, found.text, self.model, cut=found.cut, refused=found.refused)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _answer(line: bytes) -> Answer | None:
    """Return the answer in a line, None if there is none."""
    try:
        row: Any = orjson.loads(line)
        if "key" in row:
            key = row["key"]
        else:
            name, _, version = row["prompt"].partition("/")
            prompt = prompt_named(name)
            if version != str(prompt.version):
                return None
            key = prompt.key(row["input"])
        texts = [key, row.get("answer", ""), row.get("model", ""), row.get("refused", "")]
        if not all(isinstance(text, str) for text in texts) or not key or not (texts[1] or texts[3]):
            return None
        read, written, cost = int(row.get("read", 0)), int(row.get("written", 0)), float(row.get("cost", 0.0))
        return Answer(key, texts[1], texts[2], read, written, cost, bool(row.get("cut", False)), texts[3])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, OSError):
        return None
