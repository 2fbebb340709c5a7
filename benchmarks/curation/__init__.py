"""A synthetic log, and curating it in a process of its own."""
