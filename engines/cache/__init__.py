"""Engines that were built on this machine, kept: a plan, a sidecar that says what it is, and the rules for using it."""
