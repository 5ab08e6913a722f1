"""The command line: ``retinastream detect | model | doctor``."""

from retinastream.cli.main import main

__all__ = ["main"]
