"""Layers that go over a whole grid (``forward``), and write one step along it (``write``)."""
