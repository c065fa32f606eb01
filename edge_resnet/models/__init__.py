"""The ResNet family as torch modules, and the names by which they are built."""
