"""Does what no event triggers: leases that run out, new settings, batches that are safe or must be applied again."""
