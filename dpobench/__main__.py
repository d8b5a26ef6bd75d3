"""`python -m dpobench`, as launchers such as torchrun need it."""

from dpobench.cli.commands import main

if __name__ == "__main__":
    main()
