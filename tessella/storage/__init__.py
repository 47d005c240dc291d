"""What is written for the user and taken up again: codes on disk, images as they are drawn, sheets
of pictures."""
