"""Clean and low-quality images that belong together: what the mid-timestep and training draw from."""
