//! The innermost product: a tile of [`MR`] rows × [`nr`] columns, from two packed panels.
//!
//! Every element of a tile is one chain of multiply-adds in the order of `k`, wherever it stands:
//! equal rows give equal bits, and a matrix may be cut anywhere.

use crate::simd::Level;

/// Rows of a tile.
pub const MR: usize = 12;

/// Columns of a tile: 128 bytes, two of the widest registers.
pub const fn nr<F>() -> usize {
    128 / size_of::<F>()
}

/// Elements of a tile, for the narrowest type.
pub const TILE: usize = MR * nr::<f32>();

/// One kernel: `$regs` registers of `$width` elements by `$rows` rows at a time, until the tile is
/// done; as many as the machine's registers hold.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($name:ident, $features:literal, $type:ident, $width:literal, $rows:literal,
        $zero:ident, $load:ident, $set:ident, $fma:ident, $store:ident) => {
        #[target_feature(enable = $features)]
        fn $name(a: &[$type], b: &[$type], tile: &mut [$type]) {
            use std::arch::x86_64::*;
            const NR: usize = nr::<$type>();
            for row in (0..MR).step_by($rows) {
                for col in (0..NR).step_by(2 * $width) {
                    let mut sums = [[$zero(); 2]; $rows];
                    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
                        let b: &[$type; 2 * $width] = b[col..].first_chunk().expect("in the tile");
                        // SAFETY: `b` has twice the elements of a register.
                        let b = unsafe { [$load(b.as_ptr()), $load(b.as_ptr().add($width))] };
                        for (sums, &a) in sums.iter_mut().zip(&a[row..]) {
                            let a = $set(a);
                            sums[0] = $fma(a, b[0], sums[0]);
                            sums[1] = $fma(a, b[1], sums[1]);
                        }
                    }
                    let tile = tile.as_chunks_mut::<NR>().0[row..].iter_mut();
                    for (tile, sums) in tile.zip(sums) {
                        let tile: &mut [$type; 2 * $width] =
                            tile[col..].first_chunk_mut().expect("in the tile");
                        // SAFETY: `tile` has twice the elements of a register.
                        unsafe {
                            $store(tile.as_mut_ptr(), sums[0]);
                            $store(tile.as_mut_ptr().add($width), sums[1]);
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernel!(
    f32_avx512,
    "avx512f",
    f32,
    16,
    12,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps
);
#[cfg(target_arch = "x86_64")]
kernel!(
    f64_avx512,
    "avx512f",
    f64,
    8,
    12,
    _mm512_setzero_pd,
    _mm512_loadu_pd,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_storeu_pd
);
#[cfg(target_arch = "x86_64")]
kernel!(
    f32_avx2,
    "avx2,fma",
    f32,
    8,
    6,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_storeu_ps
);
#[cfg(target_arch = "x86_64")]
kernel!(
    f64_avx2,
    "avx2,fma",
    f64,
    4,
    6,
    _mm256_setzero_pd,
    _mm256_loadu_pd,
    _mm256_set1_pd,
    _mm256_fmadd_pd,
    _mm256_storeu_pd
);

/// For every other machine: four rows of eight sums at a time, for the compiler to vectorise.
macro_rules! portable {
    ($name:ident, $type:ident) => {
        fn $name(a: &[$type], b: &[$type], tile: &mut [$type]) {
            const NR: usize = nr::<$type>();
            for row in (0..MR).step_by(4) {
                for col in (0..NR).step_by(8) {
                    let mut sums = [[0.0; 8]; 4];
                    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
                        for (sums, &a) in sums.iter_mut().zip(&a[row..]) {
                            for (sum, &b) in sums.iter_mut().zip(&b[col..col + 8]) {
                                *sum += a * b;
                            }
                        }
                    }
                    for (tile, sums) in tile.as_chunks_mut::<NR>().0[row..].iter_mut().zip(sums) {
                        tile[col..col + 8].copy_from_slice(&sums);
                    }
                }
            }
        }
    };
}
portable!(f32_portable, f32);
portable!(f64_portable, f64);

/// Defines the choice among the kernels of one type.
macro_rules! choice {
    ($name:ident, $type:ident, $portable:ident, $avx2:ident, $avx512:ident) => {
        /// `tile = a·b`: `a` is `[k, MR]`, `b` `[k, nr]`, `tile` `[MR, nr]`.
        #[inline(always)]
        pub fn $name(a: &[$type], b: &[$type], tile: &mut [$type]) {
            assert_eq!(tile.len(), MR * nr::<$type>(), "a tile is MR x nr");
            match Level::detect() {
                Level::Base => $portable(a, b, tile),
                // SAFETY: `Level::detect` found the features that the kernel is compiled for.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { $avx2(a, b, tile) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { $avx512(a, b, tile) },
            }
        }
    };
}
choice!(tile_f32, f32, f32_portable, f32_avx2, f32_avx512);
choice!(tile_f64, f64, f64_portable, f64_avx2, f64_avx512);

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel that this machine can run, against plain sums in double precision.
    #[test]
    fn kernels_agree() {
        type Kernel = unsafe fn(&[f32], &[f32], &mut [f32]);
        let mut kernels: Vec<Kernel> = vec![f32_portable];
        #[cfg(target_arch = "x86_64")]
        {
            let level = Level::detect();
            kernels.extend((level != Level::Base).then_some(f32_avx2 as Kernel));
            kernels.extend((level == Level::Avx512).then_some(f32_avx512 as Kernel));
        }
        const NR: usize = nr::<f32>();
        for k in [1, 2, 37] {
            // small integers: every order of additions gives the same sum
            let a: Vec<f32> = (0..k * MR).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
            let b: Vec<f32> = (0..k * NR).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
            for kernel in &kernels {
                let mut tile = vec![f32::NAN; TILE];
                // SAFETY: only kernels whose features were detected are in the list.
                unsafe { kernel(&a, &b, &mut tile) };
                for (at, &got) in tile.iter().enumerate() {
                    let want: f32 = (0..k).map(|p| a[p * MR + at / NR] * b[p * NR + at % NR]).sum();
                    assert_eq!(got, want, "k = {k}, element {at}");
                }
            }
        }
    }
}
