"""What ``fedcompress site`` runs, a file for each command."""
