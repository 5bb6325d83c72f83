"""The packages of the wheel: pal_jax, and inside it the folders configs/ and launch/ of the repository."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['pal_jax*']), 'pal_jax.configs', 'pal_jax.launch'],
    package_dir={'pal_jax.configs': 'configs', 'pal_jax.launch': 'launch'},
)
