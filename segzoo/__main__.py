"""``python -m segzoo`` is the command line."""

from segzoo.cli import run

if __name__ == "__main__":
    run()
