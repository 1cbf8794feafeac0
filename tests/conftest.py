"""One thread for every test: the same sums in the same order on every machine; no limit in milliseconds.

Indexes that tests make are noted in a data folder of their own, never in that of the user.
"""

import os
from tempfile import TemporaryDirectory

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
_home = TemporaryDirectory(prefix="dinokit-tests-")
os.environ["DINOKIT_HOME"] = _home.name

settings.register_profile("suite", deadline=None)  # a busy machine is no failure; pytest-timeout is the limit
settings.load_profile("suite")
