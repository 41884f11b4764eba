"""Run the command line by ``python -m gramnorm``."""

from gramnorm.report.cli import program

if __name__ == "__main__":
    program()
