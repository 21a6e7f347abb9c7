"""The common corruptions, one function each: (images, random numbers, constants) -> images."""
