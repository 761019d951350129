"""Tests of both halves. Importing this comes before all else that the tests import."""

import os

from tests import first_calls

# torch and BLAS start a thread per core and process otherwise, which makes tiny tensors slower
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

first_calls.install()
