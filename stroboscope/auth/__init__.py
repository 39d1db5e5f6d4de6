"""Who may ask what: keys, tokens, scopes."""
