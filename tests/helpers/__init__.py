"""What several test files share; tests/conftest.py makes this folder importable as `helpers`."""
