"""HTTP in, HTTP out: connections, access, bodies, the handler, responses."""
