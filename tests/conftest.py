"""What holds for every test."""

import os

from hypothesis import settings

# Several workers with as many threads each as there are cores wait for one another more than they compute.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
