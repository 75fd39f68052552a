//! Matrix products of slices: the one place where bounds become a promise to the product's kernel.

use super::CpuFloat;
use crate::backend::Write;

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
}

/// Whether a `rows × cols` matrix of these strides lies within `len` elements.
fn fits(len: usize, rows: usize, cols: usize, strides: [usize; 2]) -> bool {
    (rows - 1) * strides[0] + (cols - 1) * strides[1] < len
}

/// `c = a·b` or `c += a·b` by `write`, on the calling thread: `a` is `m × k`, `b` `k × n`, and `c`
/// `m × n` in rows of `stride` elements. Every extent is at least 1.
pub fn gemm<F: CpuFloat>(
    [m, k, n]: [usize; 3],
    a: Mat<F>,
    b: Mat<F>,
    write: Write,
    c: &mut [F],
    stride: usize,
) {
    assert!(m > 0 && k > 0 && n > 0, "gemm: empty product {m}x{k}x{n}");
    assert!(fits(a.data.len(), m, k, a.strides), "gemm: a outside its slice");
    assert!(fits(b.data.len(), k, n, b.strides), "gemm: b outside its slice");
    assert!(n <= stride && fits(c.len(), m, n, [stride, 1]), "gemm: c outside its slice");
    let beta = match write {
        Write::Set => F::ZERO,
        Write::Add => F::ONE,
    };
    let signed = |s: [usize; 2]| s.map(|s| s as isize);
    // SAFETY: the assertions above hold every element of the three matrices within their slices;
    // `c` is borrowed mutably, and its rows do not overlap because `n <= stride`.
    unsafe {
        F::gemm(
            m,
            k,
            n,
            (a.data.as_ptr(), signed(a.strides)),
            (b.data.as_ptr(), signed(b.strides)),
            beta,
            (c.as_mut_ptr(), [stride as isize, 1]),
        );
    }
}
