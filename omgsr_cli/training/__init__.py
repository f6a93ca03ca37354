"""Training: the published recipe as one trainer for every family of models."""
