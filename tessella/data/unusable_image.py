"""The one error that every check of an image file raises."""

from __future__ import annotations


class UnusableImage(Exception):
    """A file is not an image we can use; the text is the reason."""
