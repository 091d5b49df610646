"""Interpreters of programs. `interpret` alone knows control flow; each other file says what a site means to one of them."""
