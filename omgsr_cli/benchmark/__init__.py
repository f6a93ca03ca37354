"""Scores, speed and a report of models side by side."""
