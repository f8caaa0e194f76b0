"""Several training processes: launching, rendezvous, collectives and sharding."""
