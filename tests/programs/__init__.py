"""Programs that are run by hand, from anywhere; tests run a part of them."""
