"""Outputs on disk: codes and drawn images that resume where they were stopped."""
