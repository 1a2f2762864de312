//! The machine against rustls's client, and against records made by hand.

mod certificates;
mod driver;
mod floods;
mod handshakes;
mod moved;
mod records;
mod saved;
