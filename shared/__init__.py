"""What the receiver, the workers and the command line must agree on, and nothing more."""
