"""`python -m function` starts the server."""

from function.main import cli

if __name__ == "__main__":
    cli()
