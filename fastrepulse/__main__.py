"""`python -m fastrepulse`, for `torchrun` and wherever the command is not on the path."""

from fastrepulse.cli import main

if __name__ == "__main__":
    main()
