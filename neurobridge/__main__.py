"The command line by `neurobridge`, and by `python -m neurobridge` where that is not on the path."

import sys


def main() -> None:
    "Run the command line; Ctrl-C during its imports, which take seconds, is no traceback either."
    try:
        from neurobridge.lab.cli import app

        app()
    except KeyboardInterrupt:
        print("neurobridge: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
