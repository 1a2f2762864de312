//! The committed object belongs to the sources of the program.
