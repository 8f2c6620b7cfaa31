"Damaged files of every kind for every command, and how a command must end."
