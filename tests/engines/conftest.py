"""Fixtures that several tests of engines share."""

from fake_tensorrt.fixtures import newest, world  # noqa: F401
