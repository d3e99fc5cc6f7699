"""For plugin authors: contract suite, listing, skeletons."""
