"""Images that cannot be read: another stands in for each, they are listed, and too many stop the run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dinov2kit.errors import ImageError

from .image_sets import ImageSet
from .order import replacement_index
from .pixels import Pixels

FILE = "bad_files.txt"

_SHARE, _LEAST = 0.01, 10  # of the set may be bad; so many may always be
_IN_A_ROW = 100  # then it is not the images that are bad

Bad = tuple[int, str, str]
"""Number, name and complaint of an image that cannot be read."""


def read_or_replace(images: ImageSet, index: int, *, seed: int) -> tuple[Pixels, int, list[Bad]]:
    """Read an image, or the one that stands in for it; which that is follows from the seed and the index.

    Returns: the pixels, the number of the image that they are of, and those that could not be read.

    Raises:
        ImageError: neither it nor any of the next hundred that could stand in can be read.
    """
    bad: list[Bad] = []
    chosen = index
    for attempt in range(1, min(len(images), _IN_A_ROW) + 1):
        try:
            return images.read(chosen), chosen, bad
        except ImageError as error:
            bad.append((chosen, images.name(chosen), error.message))
        chosen = replacement_index(index, attempt, len(images), seed)
    raise ImageError(
        f"none of {len(bad)} images drawn one after the other can be read; the last: {bad[-1][2]}",
        hint="check that the disk is still there and that the files are images",
    )


class BadImages:
    """The images of a set that cannot be read: counted, and listed in a file of the run that only grows.

    Args:
        folder: of the run. What its list holds from an earlier part of the run counts.
        images: how many images the set has.
        most: share of the set that may be bad; ten images may be, however small it is.
        writes: whether this process writes the list; one of the processes of a run does.

    Raises:
        ImageError: the list cannot be read, or already holds too many.
    """

    def __init__(self, folder: Path, *, images: int, most: float = _SHARE, writes: bool = True) -> None:
        self._file, self._images, self._writes = folder / FILE, images, writes
        self._most = max(_LEAST, int(most * images))
        try:
            text = self._file.read_text("utf-8", "surrogateescape") if self._file.exists() else ""
        except OSError as error:
            raise ImageError(f"{self._file}: it cannot be read: {error.strerror or error}") from error
        *lines, rest = text.split("\n")
        self._torn = rest != ""  # a line that was being written when the run was killed
        self._known = {int(number) for line in lines if (number := line.partition("\t")[0]).isdecimal()}
        self._stop_above_share(lines[-1] if lines else "")

    @property
    def count(self) -> int:
        """How many images are bad, as far as is known."""
        return len(self._known)

    def record(self, index: int, name: str, why: str) -> None:
        """Note an image once, however often it is met.

        Raises:
            ImageError: too many images of the set are bad, or the list cannot be written.
        """
        if index in self._known:
            return
        fields = (str(index), name, why.removeprefix(f"{name}: "))
        line = "\t".join(" ".join(field.split()) for field in fields)
        if self._writes:
            self._append(line)
        self._known.add(index)
        self._stop_above_share(line)

    def record_all(self, bad: Iterable[Bad]) -> None:
        """Note several images, see `record`."""
        for index, name, why in bad:
            self.record(index, name, why)

    def _append(self, line: str) -> None:
        try:
            with self._file.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write("\n" * self._torn + line + "\n")
        except OSError as error:
            raise ImageError(f"{self._file}: it cannot be written: {error.strerror or error}") from error
        self._torn = False

    def _stop_above_share(self, last: str) -> None:
        if self.count > self._most:
            raise ImageError(
                f"{self.count} of {self._images} images cannot be read, and at most {self._most} may be so; "
                f"the last: {last.replace(chr(9), ' ')}",
                hint=f"they are listed in {self._file}; mend or remove them",
            )
