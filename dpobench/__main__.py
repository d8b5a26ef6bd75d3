"""`python -m dpobench`, as launchers such as torchrun need it."""

from dpobench.cli import main

if __name__ == "__main__":
    main()
