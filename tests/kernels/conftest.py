"""Lets the tests of the kernels ask for a backend."""

from backends import backend

__all__ = ["backend"]
