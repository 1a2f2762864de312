//! Random numbers of the kernel, fit for keys.
//!
//! Must not know: what they are for.

use std::io;

/// That many bytes from getrandom(2).
///
/// # Errors
/// If the kernel has none.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| io::Error::other("the kernel has no random numbers"))?;
    Ok(bytes)
}
