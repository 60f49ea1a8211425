"""Compilers that fail."""


def failing_nvcc(folder):
    """Writes an nvcc to a folder's `bin` that lists two architectures and compiles nothing.

    Returns the file to which this nvcc writes its arguments.
    """
    nvcc, asked = folder / "bin" / "nvcc", folder / "asked"
    nvcc.parent.mkdir()
    listing = '[ "$1" = --list-gpu-arch ] && printf "compute_80\\ncompute_90\\n" && exit 0'
    nvcc.write_text(f'#!/bin/sh\n{listing}\necho "$@" > {asked}\nexit 2\n')
    nvcc.chmod(0o755)
    return asked
