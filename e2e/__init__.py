"""End-to-end tests, on a real kernel with real runtimes and clients."""
