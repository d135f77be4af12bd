"""`trainer convert`: from a checkpoint of other code to a run, and back."""
