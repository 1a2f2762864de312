//! CRC32C (Castagnoli), fast enough not to be the price of a state record: where the CPU can
//! multiply four carry-less products at once, 256 bytes are folded at a time; elsewhere the `crc32c`
//! crate's three-way CRC instruction is used.
//!
//! The folding is Gopal and others, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
//! Instruction" (Intel, 2009), in its reflected form.
//!
//! Must not know: what is summed up.

/// Shorter inputs do not earn the folding's start and end.
#[cfg(target_arch = "x86_64")]
const FOLD_FROM_BYTES: usize = 768;

/// CRC32C of the bytes (as in iSCSI, RFC 3720: `crc32c(b"123456789")` is `0xe306_9283`).
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= FOLD_FROM_BYTES
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("sse4.2")
    {
        let (blocks, rest) = bytes.as_chunks::<256>();
        // SAFETY: the CPU has all the features that the function is compiled for.
        let folded = unsafe { folding::crc32c_blocks(blocks) };
        return crc32c::crc32c_append(folded, rest);
    }
    crc32c::crc32c(bytes)
}

#[cfg(target_arch = "x86_64")]
mod folding {
    use std::arch::x86_64::*;

    /// x^n modulo the polynomial, reflected.
    const fn power(n: u32) -> i64 {
        let mut value: u32 = 0x8000_0000;
        let mut step = 0;
        while step < n {
            value = (value >> 1) ^ if value & 1 != 0 { 0x82f6_3b78 } else { 0 };
            step += 1;
        }
        value as i64
    }

    /// What the two halves of 16 bytes are multiplied by, to move them on by that many bytes.
    const fn factors(bytes: u32) -> [i64; 2] {
        [power(bytes * 8 + 31), power(bytes * 8 - 33)]
    }

    const BY_16: [i64; 2] = factors(16);
    const BY_32: [i64; 2] = factors(32);
    const BY_48: [i64; 2] = factors(48);
    const BY_64: [i64; 2] = factors(64);
    const BY_256: [i64; 2] = factors(256);

    #[inline]
    #[target_feature(enable = "avx512f,vpclmulqdq")]
    fn fold(value: __m512i, factors: __m512i, onto: __m512i) -> __m512i {
        let low = _mm512_clmulepi64_epi128::<0x00>(value, factors);
        let high = _mm512_clmulepi64_epi128::<0x11>(value, factors);
        _mm512_ternarylogic_epi64::<0x96>(low, high, onto)
    }

    #[inline]
    #[target_feature(enable = "pclmulqdq,sse2")]
    fn fold_16(value: __m128i, factors: [i64; 2], onto: __m128i) -> __m128i {
        let factors = _mm_set_epi64x(factors[1], factors[0]);
        let low = _mm_clmulepi64_si128::<0x00>(value, factors);
        let high = _mm_clmulepi64_si128::<0x11>(value, factors);
        _mm_xor_si128(_mm_xor_si128(low, high), onto)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn everywhere(factors: [i64; 2]) -> __m512i {
        _mm512_set4_epi64(factors[1], factors[0], factors[1], factors[0])
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(block: &[u8; 256]) -> [__m512i; 4] {
        let start = block.as_ptr();
        // SAFETY: 4 times 64 bytes are the block's 256; the loads may be unaligned.
        [0usize, 64, 128, 192].map(|offset| unsafe { _mm512_loadu_si512(start.add(offset).cast()) })
    }

    /// CRC32C of whole blocks.
    #[target_feature(enable = "avx512f,vpclmulqdq,pclmulqdq,sse4.2")]
    pub(super) fn crc32c_blocks(blocks: &[[u8; 256]]) -> u32 {
        let Some((first, others)) = blocks.split_first() else { return 0 };
        let mut sums = load(first);
        // The initial value of all ones.
        let ones = _mm512_zextsi128_si512(_mm_cvtsi32_si128(-1));
        sums[0] = _mm512_xor_si512(sums[0], ones);
        let by_256 = everywhere(BY_256);
        for block in others {
            let next = load(block);
            sums = [
                fold(sums[0], by_256, next[0]),
                fold(sums[1], by_256, next[1]),
                fold(sums[2], by_256, next[2]),
                fold(sums[3], by_256, next[3]),
            ];
        }
        let by_64 = everywhere(BY_64);
        let sum = fold(sums[0], by_64, sums[1]);
        let sum = fold(sum, by_64, sums[2]);
        let sum = fold(sum, by_64, sums[3]);
        let lane_0 = _mm512_extracti32x4_epi32::<0>(sum);
        let lane_1 = _mm512_extracti32x4_epi32::<1>(sum);
        let lane_2 = _mm512_extracti32x4_epi32::<2>(sum);
        let lane_3 = _mm512_extracti32x4_epi32::<3>(sum);
        let sum = fold_16(lane_0, BY_48, lane_3);
        let sum = fold_16(lane_1, BY_32, sum);
        let sum = fold_16(lane_2, BY_16, sum);
        // The last 16 bytes, and the multiplication by x^32, by the CRC instruction.
        let crc = _mm_crc32_u64(0, _mm_cvtsi128_si64(sum) as u64);
        let crc = _mm_crc32_u64(crc, _mm_extract_epi64::<1>(sum) as u64);
        !(crc as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, from the definition.
    fn plain(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            }
        }
        !crc
    }

    #[test]
    fn agrees_with_the_definition() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        let bytes: Vec<u8> = (0..5000u32).map(|index| ((index * index) >> 3) as u8).collect();
        for len in (0..1400).chain([2048, 4095, 4096, 4097, 4997]) {
            for start in [0, 1, 3] {
                let part = &bytes[start..start + len];
                assert_eq!(crc32c(part), plain(part), "{len} bytes from {start}");
            }
        }
    }
}
