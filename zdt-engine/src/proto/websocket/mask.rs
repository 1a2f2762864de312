//! Masking (RFC 6455 §5.3): XOR with four bytes, repeated.
//!
//! Must not know: frames.

/// Bytes that the inner loop handles at once; the compiler turns one step into vector instructions.
const STEP: usize = 32;

/// Masks or unmasks `bytes` in place; `mask[0]` belongs to `bytes[0]`.
#[inline]
pub(super) fn apply(mask: [u8; 4], bytes: &mut [u8]) {
    let wide: [u8; STEP] = std::array::from_fn(|index| mask[index & 3]);
    let (steps, rest) = bytes.as_chunks_mut::<STEP>();
    for step in steps {
        for (byte, key) in step.iter_mut().zip(&wide) {
            *byte ^= key;
        }
    }
    let (words, rest) = rest.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(&mask) {
        *byte ^= key;
    }
}

/// The mask for the byte that follows `count` masked ones.
#[inline]
pub(super) fn advance(mut mask: [u8; 4], count: usize) -> [u8; 4] {
    mask.rotate_left(count & 3);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_every_split_agree_with_the_definition() {
        let mask = [0x11, 0x82, 0x43, 0xf4];
        for length in 0..150 {
            let plain: Vec<u8> = (0..length).map(|index| (index * 7) as u8).collect();
            let expected: Vec<u8> =
                plain.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]).collect();
            for split in 0..=length {
                let mut bytes = plain.clone();
                let (front, back) = bytes.split_at_mut(split);
                apply(mask, front);
                apply(advance(mask, split), back);
                assert_eq!(bytes, expected, "length {length}, split at {split}");
            }
        }
    }
}
