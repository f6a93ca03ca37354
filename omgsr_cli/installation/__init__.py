"""Making a model ready for use: fetching, checking, merging once, and keeping."""
