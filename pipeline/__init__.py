"""Frames in, faces out: sources, decoding, the detector, sinks, and the runner that schedules them."""
