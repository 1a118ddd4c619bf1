"""What training minimises: supervised fine-tuning (sft.py) and its loss on answers (answer_loss.py)."""
