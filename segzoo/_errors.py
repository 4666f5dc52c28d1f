"""The words that errors share: the sentence for a name that does not exist, and a few of many keys."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

__all__ = ["caller_level", "shown", "some_of", "unknown_name"]

_MOST_LISTED = 16


def unknown_name(kind: str, given: object, known: Iterable[str]) -> ValueError:
    """A ValueError that says what was given and which valid name is nearest.

    Examples:
        >>> unknown_name("norm", "bacth", ["batch", "group"])
        ValueError("unknown norm 'bacth': did you mean 'batch'? Known: batch, group")
    """
    import difflib  # what goes well needs no nearest name

    names = sorted(known)
    lower = {name.lower(): name for name in names}
    wanted = str(given).lower()
    begun = [name for name in lower if len(wanted) > 2 and name.startswith(wanted)]  # "u2net": u2net_full, u2net_lite
    begun = [name for name in begun if not any(name != other and name.startswith(other) for other in begun)]
    nearest = begun if 0 < len(begun) < 4 else difflib.get_close_matches(wanted, lower, n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(lower[name]) for name in nearest)}? " if nearest else ""
    listed = ", ".join(names[:_MOST_LISTED]) + (
        f" and {len(names) - _MOST_LISTED} more" if names[_MOST_LISTED:] else ""
    )
    return ValueError(f"unknown {kind} {given!r}: {hint}Known: {listed or 'none'}")


def some_of(keys: Sequence[str], most: int = 4) -> str:
    """The first few of many keys, for a message.

    Examples:
        >>> some_of(list("abcdef"))
        'a, b, c, d …'
    """
    return ", ".join(map(shown, keys[:most])) + (" …" if len(keys) > most else "")


def shown(text: object, most: int = 300) -> str:
    r"""A name from a file of somebody else's, for a message: nothing that a terminal obeys, and not too long.

    Examples:
        >>> shown("os\x1b[2J.system")
        'os\\x1b[2J.system'
    """
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: most + 1])
    return plain if len(plain) <= most else plain[:most] + "…"


def caller_level() -> int:
    """The ``stacklevel`` with which a warning points at the caller's line that is neither ours nor torch's."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("segzoo", "torch"):
        frame, level = frame.f_back, level + 1
    return level
