"""Distribute tasks to this process, to several processes on this machine, or to a cluster, for any kind of work."""
