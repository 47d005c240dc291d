"""Exact twins: models that compute with integers only, the same on every machine."""
