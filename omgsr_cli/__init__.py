"""One-step diffusion restoration and enlargement of real photographs."""

__version__ = "0.1.0"
