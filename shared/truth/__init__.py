"""Presence compared with OpenIM itself, and put right: what we hold, what OpenIM says, and what follows from both."""
