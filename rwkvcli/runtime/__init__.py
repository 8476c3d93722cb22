"""Loading models, states, tokens and sampling."""
