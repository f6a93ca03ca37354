"""Pairs of clean and low-quality images, for training and the mid-timestep."""
