"""Image files: the formats that are read, decoding, and checks for damage."""
