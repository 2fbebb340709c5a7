"""HTTP/2 for gRPC on asyncio: this project's own front. See connection.py."""
