"""What this machine has and can do, told also where torch cannot be imported."""
