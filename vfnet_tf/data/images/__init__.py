"""Image files: which are read, how they are decoded, and what is wrong with them."""
