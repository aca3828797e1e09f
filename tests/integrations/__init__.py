"""Other libraries on this environment; a package, since its conftest.py is not the only one."""
