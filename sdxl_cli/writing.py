"""Pictures to files beside the drawing of the next ones: in order, bounded in memory, and none is lost at the end."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from sdxl_cli.boundary import finishing
from sdxl_core.errors import SdxlError

T = TypeVar("T")

AHEAD = 2
"""Pictures that may wait to be written, the one in work included; of 1024x1024 a picture takes 3 MB and its file 2."""


class Background(Generic[T]):
    """Does work on a thread of its own and hands the results on from the caller's thread, in the order of the work.

    A context manager. When it ends, whatever made it end, all work is finished and handed on first. A failure is raised
    where the result would have been handed on; what else fails after that, or after another error, is said.

    Args:
        done: takes each result, on the thread of the caller, together with which no signal takes effect.
        say: takes each error that cannot be raised any more, on the same thread.
    """

    def __init__(self, done: Callable[[T], None], say: Callable[[SdxlError], None]) -> None:
        self._done, self._say = done, say
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._waiting: deque[Future[T]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        failure: BaseException | None = None
        while self._waiting:
            try:
                self._hand_on()
            except BaseException as another:
                if failure is None and error is None:
                    failure = another
                elif isinstance(another, SdxlError):
                    self._say(another)
        self._pool.shutdown()
        if failure is not None:
            raise failure

    def submit(self, work: Callable[[], T]) -> None:
        """Have something done; waits while too much is waiting.

        Raises:
            Exception: earlier work failed.
        """
        with finishing():  # a picture that is made is also written
            self._waiting.append(self._pool.submit(work))
        while len(self._waiting) > AHEAD:
            self._hand_on()

    def collect(self) -> None:
        """Hand on what is ready, without waiting.

        Raises:
            Exception: earlier work failed.
        """
        while self._waiting and self._waiting[0].done():
            self._hand_on()

    def wait(self) -> None:
        """Hand on everything.

        Raises:
            Exception: earlier work failed.
        """
        while self._waiting:
            self._hand_on()

    def _hand_on(self) -> None:
        with finishing():  # what is written is also said
            self._done(self._waiting.popleft().result())
