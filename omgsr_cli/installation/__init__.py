"""Install models: fetch, check, merge and store them."""
