"""What the whole system is doing, read once and shown as metrics, pages and text."""
