"""The serving bench: what it serves, who serves it, and how hard it is asked."""
