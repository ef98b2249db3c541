"""Published figures: the tables of the papers that shoal implements and compares with.

One CSV file a table; `tables.csv` names them with their sources, and `methods.csv` tells with which
options of a method they were made. Networks, data and methods have shoal's own names. Needs no
PyTorch.

Example:
    >>> from shoal import published
    >>> len(published.table("table5"))
    79
    >>> published.find(model="resnet18_cifar", data="cifar10", method="easier", removed=8).accuracy
    92.1
"""

from __future__ import annotations

from shoal.published.cells import Cell, Table, find, table, tables
from shoal.published.runs import find_run, used, variant_of, variants

__all__ = ["Cell", "Table", "find", "find_run", "table", "tables", "used", "variant_of", "variants"]
