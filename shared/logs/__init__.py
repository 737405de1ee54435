"""Log lines: their form, how many of them, and how outages are told."""
