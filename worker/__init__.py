"""Applies events to presence: queue -> jobs -> store."""
