"""How good a detector is: average precision and recall by face height."""
