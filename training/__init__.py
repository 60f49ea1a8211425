"""The scripts that made the shipped models; they run in a checkout and are not installed."""
