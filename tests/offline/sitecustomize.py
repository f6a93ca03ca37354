"""With this folder on PYTHONPATH, every Python program starts with its network cut."""

from network_guard import cut_network

cut_network()
