"""Accepted events on disk, until Redis has them for good."""
