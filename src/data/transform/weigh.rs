//! Lines of samples to resized lines: sums of samples times coefficients.
//!
//! Two lines and their coefficients at a time, because machines multiply 16-bit numbers in pairs
//! and add the products as they are made. The sums are exact, whatever the instructions.

use super::weights::{PART, Pair, Precision, Weights};
use crate::simd::{avx2_or, vectorised};

/// Samples whose sums are made at a time.
const LANES: usize = 32;

/// Lines of samples in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines<'a> {
    pub data: &'a [u8],
    /// From one line to the next, in samples.
    pub stride: usize,
    /// Number of the first line, as coefficients count them.
    pub first: usize,
}

vectorised! {
    /// Adds lines of `length` samples up to resized lines.
    pub(super) fn sum_lines<P: Precision>(
        lines: Lines<'_>,
        weights: &Weights<P>,
        length: usize,
        out: &mut [u8],
    ) {
        let Lines { data, stride, first } = lines;
        for ((start, pairs), out) in weights.iter().zip(out.chunks_exact_mut(length)) {
            let lines = &data[(start - first) * stride..];
            let mut x = 0;
            while let Some(out) = out[x..].first_chunk_mut::<{ 2 * LANES }>() {
                *out = weigh_group::<P, _>(pairs, &lines[x..], stride);
                x += out.len();
            }
            while let Some(out) = out[x..].first_chunk_mut::<LANES>() {
                *out = weigh_group::<P, _>(pairs, &lines[x..], stride);
                x += out.len();
            }
            if x == length {
                continue;
            }
            // The last samples are computed with some before them, so that none behind them are
            // read.
            if let Some(out) = out.last_chunk_mut::<LANES>() {
                *out = weigh_group::<P, _>(pairs, &lines[length - LANES..], stride);
            } else {
                for (x, out) in out.iter_mut().enumerate() {
                    [*out] = weigh::<P, 1>(pairs, &lines[x..], stride);
                }
            }
        }
    }
}

#[inline(always)]
fn weigh_group<P: Precision, const L: usize>(
    pairs: &[Pair],
    lines: &[u8],
    stride: usize,
) -> [u8; L] {
    avx2_or!(weigh_avx2::<P, L>(pairs, lines, stride), weigh::<P, L>(pairs, lines, stride))
}

/// `Σ weight · line`, of lines that follow each other at `stride`.
#[inline(always)]
fn weigh<P: Precision, const L: usize>(pairs: &[Pair], lines: &[u8], stride: usize) -> [u8; L] {
    let mut sums = [[0; L]; 2];
    for (pairs, at) in pairs.chunks_exact(P::PARTS).zip((0..).step_by(2 * stride)) {
        let [even, odd] = two_lines::<L>(lines, at, stride);
        for (sums, &[a, b]) in sums.iter_mut().zip(pairs) {
            for i in 0..L {
                sums[i] += i32::from(a) * i32::from(even[i]) + i32::from(b) * i32::from(odd[i]);
            }
        }
    }
    std::array::from_fn(|i| {
        let sum = if P::PARTS == 2 { (sums[0][i] << PART) + sums[1][i] } else { sums[0][i] };
        ((sum + (1 << (P::BITS - 1))) >> P::BITS).clamp(0, 255) as u8
    })
}

/// A line and the next. What lies behind the last line counts for nothing and may be anything.
#[inline(always)]
fn two_lines<const L: usize>(lines: &[u8], at: usize, stride: usize) -> [&[u8; L]; 2] {
    let even = lines[at..].first_chunk().expect("lines are whole lanes");
    let odd = lines.get(at + stride..).and_then(|line| line.first_chunk());
    [even, odd.unwrap_or(even)]
}

/// [`weigh`], the products of two lines added as they are made.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
#[inline]
fn weigh_avx2<P: Precision, const L: usize>(
    pairs: &[Pair],
    lines: &[u8],
    stride: usize,
) -> [u8; L] {
    use std::arch::x86_64::{
        __m256i, _mm_cvtsi32_si128, _mm256_add_epi32, _mm256_madd_epi16, _mm256_packs_epi32,
        _mm256_packus_epi16, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi32,
        _mm256_sra_epi32, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8,
    };

    let zero = _mm256_setzero_si256();
    let mut sums = [[[zero; 4]; 2]; 2];
    for sums in &mut sums {
        sums[P::PARTS - 1] = [_mm256_set1_epi32(1 << (P::BITS - 1)); 4];
    }
    let mut at = 0;
    for pairs in pairs.chunks_exact(P::PARTS) {
        let [even, odd] = two_lines::<L>(lines, at, stride);
        let [even, odd] = [even.as_chunks::<LANES>().0, odd.as_chunks::<LANES>().0];
        for ((even, odd), sums) in even.iter().zip(odd).zip(&mut sums) {
            let [even, odd] =
                [bytemuck::cast::<_, __m256i>(*even), bytemuck::cast::<_, __m256i>(*odd)];
            let (low, high) = (_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd));
            let samples = [
                _mm256_unpacklo_epi8(low, zero),
                _mm256_unpackhi_epi8(low, zero),
                _mm256_unpacklo_epi8(high, zero),
                _mm256_unpackhi_epi8(high, zero),
            ];
            for part in 0..P::PARTS {
                let pair = _mm256_set1_epi32(bytemuck::cast(pairs[part]));
                for i in 0..4 {
                    let products = _mm256_madd_epi16(samples[i], pair);
                    sums[part][i] = _mm256_add_epi32(sums[part][i], products);
                }
            }
        }
        at += 2 * stride;
    }
    let mut out = [0; L];
    for (out, sums) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(&sums) {
        let mut numbers = sums[0];
        for i in 0..4 {
            if P::PARTS == 2 {
                numbers[i] = _mm256_slli_epi32::<{ PART as i32 }>(numbers[i]);
                numbers[i] = _mm256_add_epi32(numbers[i], sums[1][i]);
            }
            numbers[i] = _mm256_sra_epi32(numbers[i], _mm_cvtsi32_si128(P::BITS as i32));
        }
        let [a, b, c, d] = numbers;
        // Packing undoes the order that unpacking made, and clamps.
        let halves = [_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)];
        *out = bytemuck::cast(_mm256_packus_epi16(halves[0], halves[1]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::resize::Interpolation;
    use super::super::weights::{Axis, Exact, Fast};
    use super::*;

    const STRIDE: usize = 110;

    /// Lines of every length, of which there may be one, or an odd number, and none behind.
    fn groups_equal_single_samples<P: Precision>() {
        let data: Vec<u8> = (0..9 * STRIDE).map(|i| (i * 89 % 251) as u8).collect();
        for (count, resized, mirrored) in
            [(1, 4, true), (3, 2, true), (3, 5, false), (9, 4, false), (8, 16, true)]
        {
            let mut weights = Weights::<P>::default();
            weights.set(Interpolation::Bicubic, Axis::whole(count, resized, mirrored));
            for length in [5, 32, 64, 97, STRIDE] {
                let lines = Lines { data: &data[..count * STRIDE], stride: STRIDE, first: 0 };
                let mut out = vec![0; resized * length];
                sum_lines(lines, &weights, length, &mut out);
                for ((start, pairs), out) in weights.iter().zip(out.chunks_exact(length)) {
                    for (x, &sample) in out.iter().enumerate() {
                        let lines = &lines.data[start * STRIDE + x..];
                        assert_eq!([sample], weigh::<P, 1>(pairs, lines, STRIDE), "{count} {x}");
                    }
                }
            }
        }
    }

    #[test]
    fn groups_of_both_precisions_equal_single_samples() {
        groups_equal_single_samples::<Exact>();
        groups_equal_single_samples::<Fast>();
    }
}
