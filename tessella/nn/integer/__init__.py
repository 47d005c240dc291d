"""The arithmetic of exact twins: programs computed with integers (``docs/arithmetic.md``)."""
