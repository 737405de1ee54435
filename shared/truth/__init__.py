"""Compares presence with OpenIM itself, and corrects it: what we hold, what OpenIM says, and what follows from both."""
