"""One thread for every test: the same sums in the same order on every machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
