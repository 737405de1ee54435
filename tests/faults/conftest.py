"""Lets the driver's modules find each other and tests/support.py, under pytest and without it."""
