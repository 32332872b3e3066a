"""Failover without Consul: a lease kept by Raft among the nodes. DESIGN.md beside this says why it is safe."""
