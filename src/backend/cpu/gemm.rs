//! Matrix products.
//!
//! `c` is cut into blocks of rows, and `k` into pieces whose panels fit the second cache: both
//! operands are copied ("packed") into panels that the [`super::kernel`] reads from front to back.
//! Blocks do not depend on the number of threads, and each element's sum runs in the order of `k`:
//! the same bits always. Panels live in memory that the device keeps: nothing is allocated after
//! the first call.
//!
//! Why not a crate: `matrixmultiply` 0.3.11 and `gemm` 0.19 allocate their panels in every call;
//! and, by its source, `gemm` adds small products in another order than large ones, so that equal
//! rows of the pool could score differently. Speed is no reason: ARCHITECTURE.md has the figures,
//! on par with `gemm`.
//!
//! Source of the scheme: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication,
//! 2008.

use super::kernel::{MR, TILE, nr};
use super::{Cpu, CpuFloat, grown};
use crate::backend::Write;
use crate::simd::vectorised;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of one task. Its panel of `a`, 96 × 384 f32, takes 144 KiB of the second cache.
const MC: usize = 96;

/// Length of a piece of `k`.
const KC: usize = 384;

/// Length of `k` that is worth a part of its own.
const DEEP: usize = 4096;

/// Panels of `b` that are multiplied with one after the other: 12 × 384 × 128 bytes stay in the
/// second cache while the block's rows go by.
const PANELS: usize = 12;

/// One side of a product: `lanes × k`, the rows of the left one or the columns of the right one.
pub trait Operand<F>: Copy + Sync {
    /// Lays elements `piece..` of `k` of the lanes `first..first + lanes` side by side, element
    /// behind element: panel `[len, width]`, whose lanes beyond keep what they held.
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]);
}

impl<F: CpuFloat> Operand<F> for Mat<'_, F> {
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]) {
        pack(self.at(first, piece), lanes, width, panel);
    }
}

/// A matrix in a slice: its first element is the slice's, its strides are in elements.
#[derive(Clone, Copy)]
pub struct Mat<'a, F> {
    data: &'a [F],
    strides: [usize; 2],
}

impl<'a, F> Mat<'a, F> {
    /// Rows of `stride` elements, of which a product uses the first.
    pub fn rows(data: &'a [F], stride: usize) -> Self {
        Self { data, strides: [stride, 1] }
    }

    /// The transpose of [`Mat::rows`].
    pub fn cols(data: &'a [F], stride: usize) -> Self {
        Self { data, strides: [1, stride] }
    }

    /// The matrix that starts at this element.
    #[inline(always)]
    fn at(self, row: usize, col: usize) -> Self {
        let [rows, cols] = self.strides;
        Self { data: &self.data[row * rows + col * cols..], ..self }
    }

    /// Rows for columns.
    #[inline(always)]
    pub fn transposed(self) -> Self {
        Self { strides: [self.strides[1], self.strides[0]], ..self }
    }
}

impl<F: CpuFloat> Cpu<F> {
    /// `c = a·b` or `c += a·b` by `write`, on all threads: `a` is `m × k`, `b` `k × n`, and `c`
    /// `m × n`, dense.
    pub(super) fn gemm(
        &self,
        [m, k, n]: [usize; 3],
        a: Mat<F>,
        b: Mat<F>,
        write: Write,
        c: &mut [F],
    ) {
        self.product([m, k, n], a, b.transposed(), write, c);
    }

    /// As [`Cpu::gemm`], of operands that pack themselves; `b` as its columns.
    pub(super) fn product(
        &self,
        [m, k, n]: [usize; 3],
        a: impl Operand<F>,
        b: impl Operand<F>,
        write: Write,
        c: &mut [F],
    ) {
        assert_eq!(c.len(), m * n, "gemm: c must be dense");
        let mut room = self.inner.panels.lock().expect("no thread panics in a product");
        let room = &mut *room;
        self.run(|| {
            let width = n.next_multiple_of(nr::<F>());
            for piece in (0..k).step_by(KC) {
                let len = KC.min(k - piece);
                let panels = grown(room, len * width);
                panels.par_chunks_exact_mut(len * nr::<F>()).enumerate().for_each(|(j, panel)| {
                    let first = j * nr::<F>();
                    b.pack(first, nr::<F>().min(n - first), piece, nr::<F>(), panel);
                });
                let (panels, write) = (&*panels, if piece > 0 { Write::Add } else { write });
                c.par_chunks_mut(MC * n).enumerate().for_each(|(block, c)| {
                    let rows = c.len() / n;
                    self.panels(rows.next_multiple_of(MR) * len, |room| {
                        pack_rows(a, block * MC, rows, piece, len, room);
                        multiply(room, panels, len, write, c, [rows, n, n]);
                    });
                });
            }
        });
    }

    /// `c += f(a·b)` for a small product of a long `k`, such as the gradient of a convolution's
    /// weights: cut along `k`, in as many parts as its extents ask for, whose products `add` gets
    /// one row at a time, with that row of `c`: the places of the parts' values are `n` apart, for
    /// `add` to lay out as it likes.
    pub(super) fn product_in_parts(
        &self,
        [m, k, n]: [usize; 3],
        a: impl Operand<F>,
        b: impl Operand<F>,
        c: &mut [F],
        add: impl Fn(&[F], &mut [F]) + Sync,
    ) {
        assert_eq!(c.len(), m * n, "gemm: c must be dense");
        let parts = parts(m, k);
        let mut room = self.inner.partials.lock().expect("no thread panics in a product");
        let sums = grown(&mut room, parts * m * n);
        if parts == 1 {
            self.product([m, k, n], a, b, Write::Set, sums);
        }
        self.run(|| {
            if parts > 1 {
                let len = k.div_ceil(parts);
                sums.par_chunks_exact_mut(m * n).enumerate().for_each(|(part, c)| {
                    let k = part * len..k.min((part + 1) * len);
                    self.product_here([m, n], k, a, b, Write::Set, c, n);
                });
            }
            c.par_chunks_exact_mut(n).enumerate().for_each(|(row, c)| {
                for part in sums.chunks_exact(m * n) {
                    add(&part[row * n..][..n], c);
                }
            });
        });
    }

    /// As [`Cpu::gemm`], on the calling thread, which must be of this device; rows of `c` lie
    /// `stride` elements apart.
    pub(super) fn gemm_here(
        &self,
        [m, k, n]: [usize; 3],
        a: Mat<F>,
        b: Mat<F>,
        write: Write,
        c: &mut [F],
        stride: usize,
    ) {
        self.product_here([m, n], 0..k, a, b.transposed(), write, c, stride);
    }

    /// As [`Cpu::gemm_here`], of operands that pack themselves, over a part of their `k`.
    #[allow(clippy::too_many_arguments, reason = "a product has this many")]
    fn product_here(
        &self,
        [m, n]: [usize; 2],
        k: Range<usize>,
        a: impl Operand<F>,
        b: impl Operand<F>,
        write: Write,
        c: &mut [F],
        stride: usize,
    ) {
        let width = n.next_multiple_of(nr::<F>());
        let (rows, piece) = (MC.min(m).next_multiple_of(MR), KC.min(k.len()));
        self.panels((width + rows) * piece, |room| {
            let (panels, room) = room.split_at_mut(width * piece);
            for piece in k.clone().step_by(KC) {
                let len = KC.min(k.end - piece);
                let panels = &mut panels[..width * len];
                for (j, panel) in panels.chunks_exact_mut(len * nr::<F>()).enumerate() {
                    let first = j * nr::<F>();
                    b.pack(first, nr::<F>().min(n - first), piece, nr::<F>(), panel);
                }
                let write = if piece > k.start { Write::Add } else { write };
                for first in (0..m).step_by(MC) {
                    let rows = MC.min(m - first);
                    let room = &mut room[..rows.next_multiple_of(MR) * len];
                    pack_rows(a, first, rows, piece, len, room);
                    let c = &mut c[first * stride..];
                    multiply(room, panels, len, write, c, [rows, n, stride]);
                }
            }
        });
    }
}

/// Parts of a `k` that is much longer than `m` has blocks for the threads.
pub fn parts(m: usize, k: usize) -> usize {
    (k / DEEP / m.div_ceil(MC)).clamp(1, 16)
}

/// Packs a block of rows of `a`, panel behind panel.
fn pack_rows<F: CpuFloat>(
    a: impl Operand<F>,
    first: usize,
    rows: usize,
    piece: usize,
    len: usize,
    room: &mut [F],
) {
    for (i, panel) in room.chunks_exact_mut(MR * len).enumerate() {
        a.pack(first + i * MR, MR.min(rows - i * MR), piece, MR, panel);
    }
}

vectorised! {
    /// Lays the first `lanes` rows of `x` side by side, element behind element: panel `[k, width]`.
    /// The lanes beyond keep what they held: they meet only in rows and columns of a tile that are
    /// dropped.
    fn pack<F: CpuFloat>(x: Mat<F>, lanes: usize, width: usize, panel: &mut [F]) {
        // what callers pass, spelt out, so that a full row is a copy of known length
        if lanes == width && width == nr::<F>() {
            return pack_lanes(x, lanes, nr::<F>(), panel);
        }
        if lanes == width && width == MR {
            return pack_lanes(x, lanes, MR, panel);
        }
        pack_lanes(x, lanes, width, panel);
    }
}

#[inline(always)]
fn pack_lanes<F: CpuFloat>(x: Mat<F>, lanes: usize, width: usize, panel: &mut [F]) {
    let [across, along] = x.strides;
    if across == 1 {
        for (p, to) in panel.chunks_exact_mut(width).enumerate() {
            to[..lanes].copy_from_slice(&x.data[p * along..][..lanes]);
        }
        return;
    }
    // 16 elements of every lane at a time, so that the panel's lines stay in the first cache
    for (group, panel) in panel.chunks_mut(16 * width).enumerate() {
        for lane in 0..lanes {
            let x = &x.data[lane * across + group * 16 * along..];
            for (to, x) in panel.chunks_exact_mut(width).zip(x.iter().step_by(along)) {
                to[lane] = *x;
            }
        }
    }
}

vectorised! {
    /// Multiplies a packed block of rows with all packed panels; `c` is `rows × n`, its rows
    /// `stride` apart.
    fn multiply<F: CpuFloat>(
        a: &[F],
        b: &[F],
        len: usize,
        write: Write,
        c: &mut [F],
        extents: [usize; 3],
    ) {
        let [rows, n, stride] = extents;
        let mut tile = [F::ZERO; TILE];
        let tile = &mut tile[..MR * nr::<F>()];
        for (group, b) in b.chunks(PANELS * len * nr::<F>()).enumerate() {
            for (i, a) in a.chunks_exact(len * MR).enumerate() {
                let height = MR.min(rows - i * MR);
                for (j, b) in b.chunks_exact(len * nr::<F>()).enumerate() {
                    let col = (group * PANELS + j) * nr::<F>();
                    let width = nr::<F>().min(n - col);
                    let c = &mut c[i * MR * stride + col..];
                    for c in c.chunks(stride).take(height) {
                        prefetch(c);
                    }
                    F::tile(a, b, tile);
                    let rows = c.chunks_mut(stride).zip(tile.chunks_exact(nr::<F>()));
                    for (c, tile) in rows.take(height) {
                        put(write, &mut c[..width], tile);
                    }
                }
            }
        }
    }
}

/// Writes one row of a tile; a whole one in a loop of known length.
#[inline(always)]
fn put<F: CpuFloat>(write: Write, c: &mut [F], tile: &[F]) {
    let some = |c: &mut [F]| match write {
        Write::Set => c.iter_mut().zip(tile).for_each(|(c, &t)| *c = t),
        Write::Add => c.iter_mut().zip(tile).for_each(|(c, &t)| *c += t),
    };
    if c.len() == nr::<F>() { some(&mut c[..nr::<F>()]) } else { some(c) }
}

/// Asks for the 128 bytes at the start of `c` while the kernel works.
#[inline(always)]
fn prefetch<F>(c: &[F]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = c.as_ptr().cast::<i8>();
        // SAFETY: a prefetch reads nothing; every address is allowed.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at);
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(64));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = c;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, whose sums are exact in every order: sizes one past each block, both
    /// operands both ways, set and added, dense and in wider rows.
    #[test]
    fn products_of_integers_are_exact() {
        let cpu = Cpu::<f32>::new(2).unwrap();
        let values = |len: usize, step: usize| -> Vec<f32> {
            (0..len).map(|i| (i * step % 7) as f32 - 3.0).collect()
        };
        let sizes = [[1, 1, 1], [97, 385, 33], [13, 769, 1], [1, 5, 400], [12, 384, 417]];
        for (i, [m, k, n]) in sizes.into_iter().enumerate() {
            for (write, flip) in [(Write::Set, i % 2 == 0), (Write::Add, i % 2 == 1)] {
                let (a, b) = (values(m * k, 5), values(k * n, 3));
                let (at, bt) = if flip { ([1, m], [1, k]) } else { ([k, 1], [n, 1]) };
                let (a, b) = (Mat { data: &a, strides: at }, Mat { data: &b, strides: bt });
                let start = if write == Write::Set { f32::NAN } else { 2.0 };
                let want = |row: usize, col: usize| {
                    let x = |p| a.data[row * at[0] + p * at[1]] * b.data[p * bt[0] + col * bt[1]];
                    let sum: f32 = (0..k).map(x).sum();
                    if write == Write::Set { sum } else { start + sum }
                };
                let (mut dense, mut wide) = (vec![start; m * n], vec![start; m * (n + 3)]);
                cpu.gemm([m, k, n], a, b, write, &mut dense);
                cpu.run(|| cpu.gemm_here([m, k, n], a, b, write, &mut wide, n + 3));
                for (row, (dense, wide)) in dense.chunks(n).zip(wide.chunks(n + 3)).enumerate() {
                    for col in 0..n {
                        let want = want(row, col);
                        assert_eq!([dense[col], wide[col]], [want; 2], "{m}x{k}x{n}: {row}, {col}");
                    }
                    let kept = |x: &f32| x.to_bits() == start.to_bits();
                    assert!(wide[n..].iter().all(kept), "beyond the columns");
                }
            }
        }
    }
}
