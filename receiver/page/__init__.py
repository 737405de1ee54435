"""The page for people on the admin port, and the data behind it."""
