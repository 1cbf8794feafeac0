"""placeholder of the lead, to be replaced by FEAT's file"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np


class Lesson(NamedTuple):
    image: int
    box: tuple[float, float, float, float]
    flip: bool
    class_token: Any
    patch_tokens: Any


class TeacherFeatures:
    def __init__(self, paths):
        self.paths = paths
        self.names = []
        index = {}
        image_of, self.box, self.flip, self.at = [], [], [], []
        for n, path in enumerate(paths):
            with h5py.File(path) as f:
                names = [x.decode() for x in f["names"][()]]
                for name in names:
                    if name not in index:
                        index[name] = len(self.names)
                        self.names.append(name)
                image_of += [index[names[i]] for i in f["image"][()]]
                self.box.append(f["box"][()])
                self.flip.append(f["flip"][()])
                self.at += [(n, i) for i in range(len(f["image"]))]
                self.class_dim = f["class_token"].shape[1]
                self.patch_dim = f["patch_tokens"].shape[3] if "patch_tokens" in f else None
                self.digest = str(f.attrs.get("digest", ""))
                self.scales = {
                    k: f[k].attrs.get("scale", 1.0) for k in ("class_token", "patch_tokens") if k in f
                }
        self.image_of = np.array(image_of)
        self.box, self.flip = np.concatenate(self.box), np.concatenate(self.flip)
        self.files = {}

    def __getstate__(self):
        return {**self.__dict__, "files": {}}

    @classmethod
    def open(cls, path):
        path = Path(path)
        return cls(sorted(path.glob("*.h5")) if path.is_dir() else [path])

    def __len__(self):
        return len(self.image_of)

    def read(self, row):
        n, i = self.at[row]
        if n not in self.files:
            self.files[n] = h5py.File(self.paths[n])
        f = self.files[n]
        read = lambda k: f[k][i].astype(np.float32) * np.float32(self.scales[k])
        return Lesson(
            int(self.image_of[row]),
            tuple(self.box[row].tolist()),
            bool(self.flip[row]),
            read("class_token"),
            read("patch_tokens") if self.patch_dim else None,
        )


def match_images(features, images):
    ours = {}
    for i in range(len(images)):
        ours["/".join(images.name(i).split("/")[-3:])] = i
    return np.array([ours.get("/".join(n.split("/")[-3:]), -1) for n in features.names], np.int64)


def write_teacher_features(path, *, teacher, digest, names, image, box, flip, class_token, patch_tokens):
    with h5py.File(path, "w") as f:
        f.attrs["teacher"] = teacher
        f.attrs["digest"] = digest
        f.create_dataset("names", data=list(names), dtype=h5py.string_dtype())
        f["image"], f["box"], f["flip"], f["class_token"] = image, box, flip, class_token
        if patch_tokens is not None:
            f["patch_tokens"] = patch_tokens
