"""What the pages that commands write have in common: their style, how they are filled, and images inside of them."""
