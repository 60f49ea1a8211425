"""Compilers that are not what a build hopes for."""


def failing_nvcc(folder):
    """Makes an nvcc in a folder's `bin` that knows few architectures, and fails.

    Returns the file that it writes what it was asked to.
    """
    nvcc, asked = folder / "bin" / "nvcc", folder / "asked"
    nvcc.parent.mkdir()
    listing = '[ "$1" = --list-gpu-arch ] && printf "compute_80\\ncompute_90\\n" && exit 0'
    nvcc.write_text(f'#!/bin/sh\n{listing}\necho "$@" > {asked}\nexit 2\n')
    nvcc.chmod(0o755)
    return asked
