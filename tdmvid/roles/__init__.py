"""Build the networks of student, fake, teacher and discriminator, on any device or meta."""
