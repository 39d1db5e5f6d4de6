"""What the hosts of a service share, in Redis: the lease, the knobs, the revocations."""
