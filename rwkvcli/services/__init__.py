"""One use case per file: what the command line and other programs ask for. Nothing here prints."""
