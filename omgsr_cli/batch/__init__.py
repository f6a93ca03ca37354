"""Many images: each is restored, written and reported on its own, so one failure does not stop the others."""
