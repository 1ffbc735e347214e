"""What the servers of the package share: checks of requests, sockets, static files, errors."""
