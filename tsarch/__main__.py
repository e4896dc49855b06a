"""`python -m tsarch`: the command line."""

from tsarch.launch.cli import main

if __name__ == "__main__":
    main()
