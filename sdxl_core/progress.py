"""How long work inside the core tells that it moves, without knowing who watches."""

from typing import Protocol


class Reporter(Protocol):
    """Receives the progress of one task at a time; `SILENT` drops it."""

    def start(self, task: str, total: float | None, unit: str = "") -> None:
        """Begin `task`; `total` counts `unit`s (`"B"` for bytes), None when unknown."""

    def advance(self, amount: float) -> None:
        """Add `amount` units of finished work to the running task."""

    def finish(self) -> None:
        """End the running task."""

    def note(self, text: str) -> None:
        """Tell that something was done otherwise than the user would expect; with or without a running task."""


class _Silent:
    def start(self, task: str, total: float | None, unit: str = "") -> None:
        pass

    def advance(self, amount: float) -> None:
        pass

    def finish(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


SILENT: Reporter = _Silent()
