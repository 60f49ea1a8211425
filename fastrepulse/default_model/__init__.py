"""The shipped model, its judge, and the code that trained them."""
