"""What pyproject.toml can't say yet in a settled way: one file of C, left out where there is no compiler."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("dynaclr_wds.read._copy", ["dynaclr_wds/read/copy.c"], extra_compile_args=["-O2"], optional=True)
    ]
)
