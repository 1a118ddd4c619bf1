"""What is trained in the base: a recipe as PEFT's and TRL's settings (recipe.py)."""
