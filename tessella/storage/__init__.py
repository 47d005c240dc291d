"""Outputs on disk: codes and drawn images, which resume where they were stopped, and pictures."""
