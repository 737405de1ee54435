"""Gathers the facts for the doctor, each with its own time limit, and changes nothing but a scratch file."""
