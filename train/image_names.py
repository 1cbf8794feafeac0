"""The names of many images, kept in two blocks of memory, and the classes that their folders tell.

A list of a million Python strings takes a second to travel to each worker process; a block of bytes does not.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dinov2kit.labelled_images import SPLIT_FOLDERS

_SPLITS = {name.encode() for names in SPLIT_FOLDERS.values() for name in names}


@dataclass(frozen=True)
class Names:
    """Names of files or members, as bytes.

    Attributes:
        text: all of them, one after the other.
        ends: where each ends in it.
    """

    text: bytes
    ends: Int64[np.ndarray, " n"]

    @classmethod
    def collect(cls, names: Iterable[bytes]) -> Names:
        """Copy names one by one."""
        text, ends = bytearray(), array("q")
        for name in names:
            text += name
            ends.append(len(text))
        return cls(bytes(text), np.array(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])]

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for end in self.ends.tolist():
            yield self.text[start:end]
            start = end


def is_wanted(name: bytes, suffixes: tuple[bytes, ...]) -> bool:
    """Say whether a name ends in one of some lower-case suffixes, and neither it nor a folder is hidden."""
    return name.lower().endswith(suffixes) and not name.startswith(b".") and b"/." not in name


def digest_names(names: Names, sizes: Int64[np.ndarray, " n"]) -> str:
    """Return a digest of what a list of images holds: their names and sizes, in order, not their contents."""
    digest = hashlib.blake2b(names.text, digest_size=16)
    digest.update(names.ends.tobytes())
    digest.update(sizes.tobytes())
    return digest.hexdigest()


def class_labels(names: Names) -> list[str] | None:
    """Return for each image its class where the folders are classes, else None.

    The class is the first folder in which the names differ, not counting those of splits such as `train/`.
    None where an image lies in no such folder, or all lie in one.
    """
    depth = 0
    while True:
        folders = _folders_at(names, depth)
        if folders is None:
            return None
        if len(folders) > 1 and not folders <= _SPLITS:
            break
        depth += 1
    classes = {folder: os.fsdecode(folder) for folder in folders}  # one text for each class, not each image
    return [classes[name.split(b"/", depth + 1)[depth]] for name in names]


def _folders_at(names: Names, depth: int) -> set[bytes] | None:
    """Return the folders at a depth, or None where an image lies less deep."""
    found = set()
    for name in names:
        parts = name.split(b"/", depth + 1)
        if len(parts) <= depth + 1:
            return None
        found.add(parts[depth])
    return found
