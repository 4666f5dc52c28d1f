"""One program at a time in a folder."""

from __future__ import annotations

import time
from pathlib import Path


class Lock:
    """Held by this process, and by those it passes the file to, until the last of them has ended; nothing on Windows.

    Args:
        folder: That has one program at a time.
        busy: What the error says otherwise.
        patience: Seconds to wait for one that is about to end.

    Attributes:
        passed: The file, for ``subprocess.Popen(pass_fds=…)``.

    Raises:
        ValueError: Another one holds it.
    """

    def __init__(self, folder: Path, busy: str, patience: float = 0.0) -> None:
        self.file = (folder / ".lock").open("w")
        self.passed: tuple[int, ...] = ()
        try:
            import fcntl
        except ImportError:  # Windows: nobody is kept out
            return
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() < end:
                    time.sleep(0.2)
                    continue
                self.file.close()
                raise ValueError(busy) from None
            self.passed = (self.file.fileno(),)
            return

    def close(self) -> None:
        """Let others in."""
        self.file.close()
