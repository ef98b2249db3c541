"""What processes of the tests need, imported and warmed up once; see processes.py."""

from __future__ import annotations

import accelerate  # noqa: F401

import shoal.cli.compress
import shoal.methods  # noqa: F401
import small_runs
from shoal.network import capture

# An untrained network, for those who would rather train than wait for a capture.
NETWORK = capture(small_runs.build(), small_runs.digits().example_inputs(4)).copy()
