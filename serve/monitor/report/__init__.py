"""`lorikeet quality report`: what is collected, in a terminal, as JSON and as HTML with plots."""
