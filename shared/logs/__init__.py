"""Log lines: their form, their number, and how outages are reported."""
