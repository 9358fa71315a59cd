"""The law of the width at which half of the networks succeed."""
