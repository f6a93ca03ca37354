"""Model families behind one meaning: an image goes to a latent, one step cleans it, and it comes back."""
