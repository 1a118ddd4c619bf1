"""`lorikeet sweep`: search for the settings of a domain with Optuna."""
