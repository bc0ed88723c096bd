"""What is not a loss in a loop: schemes of several trainings, one file each; see ``base``."""
