"""From the journal to the queue."""
