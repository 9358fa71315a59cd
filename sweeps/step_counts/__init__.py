"""How many steps mini-batch SGD takes."""
