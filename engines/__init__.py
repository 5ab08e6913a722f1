"""Runtimes that execute a detector network, behind one protocol."""
