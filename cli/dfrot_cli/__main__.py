"""`python -m dfrot_cli`: the `dfq` command, as torchrun and accelerate start it."""

from dfrot_cli.main import main

if __name__ == "__main__":
    main(prog_name="dfq")
