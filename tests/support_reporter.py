"""A reporter that writes down what it is told."""

from dataclasses import dataclass, field


@dataclass
class Recorder:
    """Keeps every task as [name, total, unit, sum of advances, whether it ended], and every note."""

    tasks: list[list[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def start(self, task: str, total: float | None, unit: str = "") -> None:
        assert not self.tasks or self.tasks[-1][4], "one task at a time"
        self.tasks.append([task, total, unit, 0.0, False])

    def advance(self, amount: float) -> None:
        task = self.tasks[-1]
        assert not task[4]
        assert isinstance(task[3], float)
        task[3] += amount

    def finish(self) -> None:
        assert not self.tasks[-1][4]
        self.tasks[-1][4] = True

    def note(self, text: str) -> None:
        self.notes.append(text)
