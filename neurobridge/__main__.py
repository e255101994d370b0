"The command line by `python -m neurobridge`, where the folder of commands is not on the path."

from neurobridge.lab.cli import app

if __name__ == "__main__":
    app()
