"""What pyproject.toml can't say: four files of C, left out where there is no compiler, and configs as a package.

In the repository configs/ stands at the top; in an installation it is `dynaclr_wds/configs`, for `dynaclr-wds init`.
"""

from setuptools import Extension, find_packages, setup

setup(
    packages=[*find_packages(include=["dynaclr_wds*", "etl*"]), "dynaclr_wds.configs"],
    package_dir={"dynaclr_wds.configs": "configs"},
    ext_modules=[
        Extension("dynaclr_wds._row_checks", ["dynaclr_wds/row_checks.c"], extra_compile_args=["-O3"], optional=True),
        Extension("dynaclr_wds.read._copy", ["dynaclr_wds/read/copy.c"], extra_compile_args=["-O2"], optional=True),
        Extension(
            "dynaclr_wds.plan._anchors",
            ["dynaclr_wds/plan/anchors.c"],
            extra_compile_args=["-O2", "-ffp-contract=off"],
            optional=True,
        ),
        Extension(
            "etl.cut._pixels", ["etl/cut/pixels.c"], extra_compile_args=["-O3", "-ffp-contract=off"], optional=True
        ),
    ],
)
