"""The published systems and ours, one file each; a new file in this folder is a new method."""

from __future__ import annotations

from shoal.registry import import_modules

import_modules(__name__, __path__)
