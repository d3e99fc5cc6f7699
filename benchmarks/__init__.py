"""How fast the project is beside others that do the same, on the machine at hand: `make bench`."""
