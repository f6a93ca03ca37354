"""Which file becomes which: what was typed, what is found, what a result is called. No pixel is read here."""
