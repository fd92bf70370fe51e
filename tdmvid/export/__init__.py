"""Export of students: write and check bundles of LoRAs and networks, and load them."""
