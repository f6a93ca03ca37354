"""Compare models: scores, speed and reports."""
