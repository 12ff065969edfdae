"""Numbers that are dear to find, kept in a file from the moment they are known: a run that is stopped goes on there."""

import json
from collections.abc import Callable
from pathlib import Path


class Answers:
    """A number for every question, read from a file of JSON lines or found and added to it.

    Args:
        path: made with the first answer. A line that a stopped run has left unfinished is asked again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, float] = {}
        if path.exists():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            for line in whole.splitlines():
                self._known.update(json.loads(line))

    def __contains__(self, question: str) -> bool:
        return question in self._known

    def __call__(self, question: str, find: Callable[[], float]) -> float:
        """What is known, or what `find` finds."""
        if question not in self._known:
            self._known[question] = find()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({question: self._known[question]}) + "\n")
        return self._known[question]
