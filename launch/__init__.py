"""Sets the project up and starts its jobs. Standard library only: it runs before anything is
installed. Not part of the installed package.

    python -m launch.setup                             everything a job needs, into .venv
    python launch/run.py -np 4 -- python train.py      a job on this machine
"""
