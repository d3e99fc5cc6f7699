"""What the commands in cli.py share: options, the commands of the stages, and how a process starts and ends."""
