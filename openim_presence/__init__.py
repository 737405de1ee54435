"""Who is online, for programs that read it: keys, one-off reads, the change feed, a consumer group."""
