"""Training: one trainer that implements the published recipe for every family of models."""
