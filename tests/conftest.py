"""One thread for every test: the same sums in the same order on every machine; no limit in milliseconds."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

from hypothesis import settings

settings.register_profile("suite", deadline=None)  # a busy machine is no failure; pytest-timeout is the limit
settings.load_profile("suite")
