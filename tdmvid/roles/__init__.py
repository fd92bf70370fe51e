"""How student, fake, teacher and discriminator are built, on the meta device or a real one."""
