"""Wire formats on plain data; knows no engine and no framework."""
