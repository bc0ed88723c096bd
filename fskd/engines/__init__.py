"""Where the runs of a sweep are carried out: a pool of processes here, or Ray."""
