"""What users take away: checked bundles of LoRAs and networks, and how they are loaded."""
