"""The model that ships with fastrepulse, and the code that made it."""
