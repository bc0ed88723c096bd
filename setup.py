from setuptools import find_packages, setup

# The committed split files lie at the top of the checkout and are installed inside the package.
setup(
    packages=[*find_packages(include=["fskd*"]), "fskd._splits"],
    package_dir={"fskd._splits": "data_splits"},
    package_data={
        "fskd": [
            "py.typed",
            "data/datasets/digits.*",
            "losses/measured.json",
            "results/templates/*.j2",
        ],
        "fskd._splits": ["MANIFEST.json", "*/*.npz"],
    },
)
