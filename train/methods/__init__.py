"""Translation of a recipe to PEFT's and TRL's settings (recipe.py)."""
