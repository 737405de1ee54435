"""What OpenIM did not tell: gateway processes, and batches that never came. Pure: no clock, no Redis."""
