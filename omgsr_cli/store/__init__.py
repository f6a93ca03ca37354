"""Models that were fetched: where they are kept, and what must be true of their files. Nothing here knows torch."""
