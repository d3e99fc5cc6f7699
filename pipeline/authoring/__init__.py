"""Tools for plugin authors: contract suite, listing, skeletons."""
