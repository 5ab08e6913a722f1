"""``python -m retinastream`` is the command line."""

from retinastream.cli import main

main()
