"""Events in, outcomes out: the atomic step, and what a Cluster and replicas need in addition."""
