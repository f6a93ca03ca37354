"""Diagnose this machine, even if torch cannot be imported."""
