"""An encoder for the workers of a cluster: it notes what it describes, and may kill its process, once."""

import os
import signal
import time
from pathlib import Path

import numpy as np
from colour_encoder import ColourEncoder

from dinov2kit.errors import DeviceMemoryError


class LethalEncoder(ColourEncoder):
    """A `ColourEncoder` whose notes are a line per batch: process id, first and second image's mean.

    Args:
        notes: file that gets a line for each batch: process id and number of images.
        lethal_after: the process that begins the batch after so many kills itself, unless one has done so.
        pause: seconds that a batch takes.
        fails: there is never enough memory.
    """

    batch_size = 4

    def __init__(
        self, notes: Path, *, lethal_after: int | None = None, pause: float = 0.0, fails: bool = False
    ) -> None:
        super().__init__()
        self.notes, self.lethal_after, self.pause, self.fails = notes, lethal_after, pause, fails

    @property
    def killed(self) -> Path:
        return self.notes.with_suffix(".killed")

    def batches(self) -> list[tuple[int, int]]:
        """Return process id and number of images of all batches that were described."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [(int(pid), int(count)) for pid, count in map(str.split, lines)]

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        if self.fails and len(pixels) == 1:
            raise DeviceMemoryError("out of memory", hint="less")
        if self.fails:
            raise DeviceMemoryError("out of memory")
        time.sleep(self.pause)
        if self.lethal_after is not None and len(self.batches()) >= self.lethal_after:
            try:
                self.killed.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        with self.notes.open("a") as file:
            file.write(f"{os.getpid()} {len(pixels)}\n")
        return super().embed(pixels)
