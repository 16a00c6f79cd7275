"""Whether a mask has the right shape: topology, centre lines, branches."""
