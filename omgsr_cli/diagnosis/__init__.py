"""What this machine has and can do, also if torch cannot be imported."""
