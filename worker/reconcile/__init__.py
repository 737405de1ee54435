"""Compares presence with OpenIM regularly: all users in turn, and at once if something was lost."""
