"""The error that every check of an image file raises."""

from __future__ import annotations


class UnusableImage(Exception):
    """A file cannot be used as an image; the text is the reason."""
