"""From a command line to a study, its results and its report."""
