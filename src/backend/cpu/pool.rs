//! `pool` on the CPU: tiles of scores, and a running best for every query.

use super::gemm::Mat;
use super::{Cpu, CpuFloat};
use crate::backend::ops::pool::Pool;
use crate::backend::{View, ViewMut, Write};
use crate::error::Result;
use rayon::prelude::*;

/// Queries of one task.
const QUERIES: usize = 32;

/// Pool rows of one tile.
const ROWS: usize = 256;

impl<F: CpuFloat> Pool for Cpu<F> {
    fn pool_match(
        &self,
        width: usize,
        queries: View<'_, Self, F>,
        rows: View<'_, Self, F>,
        index: ViewMut<'_, Self, u32>,
        score: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (queries, rows) = (queries.slice(), rows.slice());
        let (index, score) = (index.slice_mut(), score.slice_mut());
        self.run(|| {
            let best = index.par_chunks_mut(QUERIES).zip(score.par_chunks_mut(QUERIES));
            best.zip(queries.par_chunks(QUERIES * width)).for_each(|((index, score), queries)| {
                self.scratch(QUERIES * ROWS, |tile| {
                    nearest(self, width, queries, rows, tile, index, score)
                });
            });
        });
        Ok(())
    }

    fn pool_insert(
        &self,
        width: usize,
        rows: View<'_, Self, F>,
        pool: ViewMut<'_, Self, F>,
        at: usize,
    ) -> Result<()> {
        let (rows, pool) = (rows.slice(), pool.slice_mut());
        let (tail, wrapped) = rows.split_at(rows.len().min(pool.len() - at * width));
        pool[at * width..][..tail.len()].copy_from_slice(tail);
        pool[..wrapped.len()].copy_from_slice(wrapped);
        Ok(())
    }
}

/// The best row of every query of one block, tile by tile.
fn nearest<F: CpuFloat>(
    cpu: &Cpu<F>,
    width: usize,
    queries: &[F],
    rows: &[F],
    tile: &mut [F],
    index: &mut [u32],
    score: &mut [F],
) {
    index.fill(0);
    score.fill(F::from_f64(f64::NAN));
    for (block, rows) in rows.chunks(ROWS * width).enumerate() {
        let n = rows.len() / width;
        let (q, r) = (Mat::rows(queries, width), Mat::cols(rows, width));
        cpu.gemm_here([index.len(), width, n], q, r, Write::Set, tile, n);
        for ((index, score), found) in index.iter_mut().zip(&mut *score).zip(tile.chunks_exact(n)) {
            for (row, &found) in found.iter().enumerate() {
                // a score that is still NaN yields to any number
                if found > *score || (score.is_nan() && !found.is_nan()) {
                    (*index, *score) = ((block * ROWS + row) as u32, found);
                }
            }
        }
    }
}
