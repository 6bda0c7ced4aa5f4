"""Plans for devices, drawn in terminals, pages and pictures; without torch."""
