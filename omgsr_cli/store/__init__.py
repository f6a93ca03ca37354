"""Downloaded models: their folders, and the checks of their files. This package does not import torch."""
