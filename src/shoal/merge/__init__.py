"""Merging: what has become linear becomes fewer layers, exactly, and proved to change nothing.

A merge goes through these files, driven by `merge.py`:

1. `peephole` rewrites the graph a little, so that linear layers come to stand side by side.
2. `regions` finds the maximal linear subgraphs, chains of layers (`linear_ops`) and sums.
3. `units` folds scales and shifts, and `cut` chooses by dynamic programming which runs of units
   become one layer, by what they cost.
4. `algebra` composes the layers of a run, in float64; `conv_map` is what it works on.
5. `build` puts the new layers into the graph, and writes a `report`.
6. `merge` compares the outputs with those before, and what differs is undone.

`padding` moves padding, so that a later merge can join more; `loading` loads saved networks.
"""
