"""What every reader of files makes of bytes that nobody meant for it: it reads them or raises InputError in one line.

`targets` lists the readers, `seeds` holds sound inputs, `mutations` changes those. `python -m fuzz check` runs all
seeds and a fixed number of changed ones, in seconds; `python -m fuzz search` looks for new paths with atheris.
"""
