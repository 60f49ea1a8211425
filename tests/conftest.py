"""Makes the modules beside this file importable in every folder of tests."""
