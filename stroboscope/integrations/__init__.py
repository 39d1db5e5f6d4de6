"""One file per framework; each needs at most five lines of the user's."""
