"""Connections to Redis: one server, behind Sentinels, or a Cluster."""
