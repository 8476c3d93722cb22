"""The command line: flags, colours and exit codes. The only user of Typer and Rich."""
