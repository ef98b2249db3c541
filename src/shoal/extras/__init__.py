"""Extras that the core does not import: energy, robustness, figures. Each needs a package more."""
