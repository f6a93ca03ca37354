"""Many pictures: each restored, written and told, whatever happens to the others."""
