"""What a run is, told to a person: a summary as text and JSON, curves in the terminal, one HTML
file with pictures."""
