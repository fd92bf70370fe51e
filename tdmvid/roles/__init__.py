"""Student, fake, teacher and discriminator: how each is built, on the meta device or on a real one."""
