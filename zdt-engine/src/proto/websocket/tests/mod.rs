//! Tests of the whole machine: cases by hand, every split of random traffic, and a move to another
//! machine after every byte.

mod cases;
mod moved;
mod negotiation;
mod peer;
mod records;
mod traffic;
