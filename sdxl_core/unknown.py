"""Names that are not known, and which one was meant: every "did you mean" comes from here."""

import difflib
import re
from collections.abc import Collection, Iterable

from sdxl_core.errors import UsageError


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a word most likely stands for; None where there is none.

    The shortest that goes on where the word stops (`euler_a`), else one spelled like it (`kerras`), else the longest
    that the word goes on from (`v_pred`).
    """
    names = sorted(known, key=len)
    if len(word) > 1 and (longer := [name for name in names if name.startswith(word)]):
        return longer[0]
    if like := difflib.get_close_matches(word, names, n=1):
        return like[0]
    return next((name for name in reversed(names) if re.match(rf"{re.escape(name)}[-_ .]", word)), None)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` where a known name is near, else nothing."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""


def unknown(
    kind: str, word: str, known: Iterable[str], *, shown: Collection[str] = (), error: type[UsageError] = UsageError
) -> UsageError:
    """The error of a name that is none of the known ones, to be raised.

    Args:
        kind: what it should be a name of, as in `unknown sampler 'eular'; did you mean euler?`.
        word: what was given.
        known: all names.
        shown: those that the hint lists, where that is not all of them.
        error: its class.
    """
    names = tuple(known)
    return error(f"unknown {kind} {word!r}{suggestion(word, names)}", hint=f"one of: {', '.join(shown or names)}")
