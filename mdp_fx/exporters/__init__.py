"""Back ends: a slim network in another format, checked against the one it came from."""
