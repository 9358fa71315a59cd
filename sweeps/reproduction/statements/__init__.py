"""Every numbered statement of Sections 2 to 5 and the appendices, measured on random problems."""
