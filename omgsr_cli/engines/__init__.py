"""Who does which task: this process, several on this machine, or a cluster's. What a task is, only its work knows."""
