"""Comparing presence with OpenIM by itself: everybody in turn, and at once where something was lost."""
